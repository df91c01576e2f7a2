"""This file owns running a model in torch: an artifact's weights, or a checkpoint as it is.

From a checkpoint it is the reference that engines are compared with (adapter merged, faithful
pooler); from an artifact it runs the exported weights without ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nvembed_deploy.artifact import Artifact
from nvembed_deploy.checkpoint import open_checkpoint, write_tokenizer
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.model.nvembed import NVEmbed, build_model, load_model, module_key
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.spec import ModelSpec, PoolerForm, Precision
from nvembed_deploy.tensorfile import TensorEntry, open_tensors
from nvembed_deploy.text import Batch

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}


class TorchRuntime:
    """A torch model on one device."""

    name = "torch"

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
        assert self._model is not None, "the runtime is closed"
        inputs = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        embedding_BD = self._model(*(torch.from_numpy(x).to(self._device) for x in inputs))
        result: NDArray[np.float32] = embedding_BD.cpu().numpy()
        return result

    def close(self) -> None:
        """Drop the model and give the GPU's memory back."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def open_runtime(artifact: Artifact, options: RuntimeOptions) -> TorchRuntime:
    """Load an artifact's weight file into the torch model.

    Raises:
        ArtifactError: the weight file lacks a tensor of the model.
        HardwareError: the device asked for is not there.
    """
    manifest = artifact.manifest
    if manifest.is_quantized:
        raise ArtifactError(
            f"{artifact.path} has quantised linears, which the torch runtime does not compute",
            'use runtime="onnx", or load the checkpoint itself with runtime="torch"',
        )
    device = _device(options)
    precision = options.dtype or _default_precision(manifest.precision, device)
    model = build_model(manifest.spec, manifest.pooler_form, _DTYPES[precision], device)
    _fill(model, open_tensors(artifact.weights), artifact.weights)
    return TorchRuntime(model, device, options.threads)


def open_checkpoint_runtime(
    path: Path, options: RuntimeOptions
) -> tuple[TorchRuntime, ModelSpec, Path]:
    """Load a checkpoint, adapter merged, pooler faithful.

    Returns:
        The runtime, the model's spec and the path of its tokenizer.json.
    """
    checkpoint = open_checkpoint(path)
    device = _device(options)
    dtype = _DTYPES[options.dtype or _default_precision(Precision.BF16, device)]
    model = load_model(open_weights(checkpoint), PoolerForm.FAITHFUL, dtype, device)
    tokenizer = checkpoint.tokenizer
    if tokenizer.suffix == ".gguf":
        tokenizer = Path(tempfile.mkdtemp(prefix="nvembed-tokenizer-")) / "tokenizer.json"
        write_tokenizer(checkpoint, tokenizer)
    return TorchRuntime(model, device, options.threads), checkpoint.spec, tokenizer


def _fill(model: NVEmbed, entries: dict[str, TensorEntry], path: Path) -> None:
    keys = {module_key(name.removesuffix("_t")): name for name in entries}
    for key, parameter in model.state_dict().items():
        if key not in keys:
            raise ArtifactError(f"{path} has no tensor for {key}", "export the checkpoint again")
        name = keys[key]
        array = entries[name].read().astype(np.float32)
        parameter.copy_(torch.from_numpy(array.T if name.endswith("_t") else array))


def _default_precision(stored: Precision, device: torch.device) -> Precision:
    """On a processor float32, the exact choice; on a GPU the stored precision."""
    return Precision.FP32 if device.type == "cpu" else stored


def _device(options: RuntimeOptions) -> torch.device:
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HardwareError(
            f"torch cannot use device {options.device!r}: {reason}",
            "use device='cpu', or a torch build and driver for that device",
        ) from error
    return device
