"""This file owns the reference that engines are compared with: a checkpoint as it was trained.

transformers' own decoder, padded batches, adapter merged, the pooler's latents projected as in
training. It shares no arithmetic with the packed model or with graphs; for speed take another.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nvembed_deploy.checkpoint import Checkpoint
from nvembed_deploy.model.nvembed import NVEmbed, load_model
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.runtimes.protocol import RuntimeOptions, closed
from nvembed_deploy.runtimes.torch_device import torch_device, torch_dtype
from nvembed_deploy.spec import PoolerForm, Precision
from nvembed_deploy.text import Batch


class ReferenceRuntime:
    """The model as it was trained, on one device."""

    name = "reference"
    packs = False
    workers = 1

    def __init__(self, model: NVEmbed, device: torch.device, threads: int | None = None) -> None:
        """Take a loaded model. `threads` is torch's own setting, which holds for the process."""
        self._model: NVEmbed | None = model
        self._device = device
        self.max_tokens = model.spec.backbone.max_positions
        if threads is not None:
            torch.set_num_threads(threads)

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", ..."""
        return str(self._device)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D], float32, of a right-padded batch."""
        if self._model is None:
            raise closed()
        inputs = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        embedding_BD = self._model(*(torch.from_numpy(x).to(self._device) for x in inputs))
        result: NDArray[np.float32] = embedding_BD.cpu().numpy()
        return result

    def close(self) -> None:
        """Drop the model and give the GPU's memory back."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def open_reference(checkpoint: Checkpoint, options: RuntimeOptions) -> ReferenceRuntime:
    """Load a checkpoint, adapter merged, pooler faithful.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        HardwareError: the device asked for is not there.
    """
    device = torch_device(options)
    dtype = torch_dtype(options, Precision.BF16, device)
    model = load_model(open_weights(checkpoint), PoolerForm.FAITHFUL, dtype, device)
    return ReferenceRuntime(model, device, options.threads)
