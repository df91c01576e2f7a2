"""This file owns models of random weights on one device: packed or padded, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.random_tensor import RandomTensor
from nvembed_deploy.model.names import expected_shapes
from nvembed_deploy.model.nvembed import NVEmbed, load_model
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.reader import CodesReader, Reader, checkpoint_reader, no_codes
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.runtimes.packed_runtime import PackedRuntime
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerForm, PoolerSpec, TextSpec
from nvembed_deploy.text import Batch, Tokens, collate

TINY = ModelSpec(
    backbone=BackboneSpec(320, 64, 2, 4, 2, 16, 96, max_positions=8192),
    pooler=PoolerSpec(num_latents=16, num_heads=2, head_width=64, feed_width=256),
    text=TextSpec(bos_id=1, eos_id=2, pad_id=2),
)


@dataclass(frozen=True)
class RandomModel:
    """A model of random weights, which are the same every time, on one device."""

    spec: ModelSpec
    device: torch.device

    @property
    def weights(self) -> Weights:
        """The random checkpoint."""
        shapes = expected_shapes(self.spec)
        return Weights(self.spec, {name: RandomTensor(name, s) for name, s in shapes.items()})

    def packed(self, name: str) -> PackedRuntime:
        """Load the packed model as the side of this name has it."""
        kernels = Kernels.compiled() if "compiled" in name else Kernels()
        read, dtype = checkpoint_reader(self.weights), torch.bfloat16
        codes = self._codes(read) if "artifact" in name else no_codes
        loader = Loader(read, dtype, self.device, kernels, "fp8" in name, codes)
        return PackedRuntime.load(self.spec, loader, RuntimeOptions().cuda_graphs)

    def _codes(self, read: Reader) -> CodesReader:
        from benchmarks.random_codes import RandomCodes  # needs ml_dtypes too

        return RandomCodes.of_default_export(read, self.device)

    def model(self, dtype: torch.dtype) -> NVEmbed:
        """Load the padded model, as trained."""
        return load_model(self.weights, PoolerForm.FAITHFUL, dtype, self.device)

    def batch(self, lengths: Sequence[int]) -> Batch:
        """Return texts of random ids; a fifth of each is an instruction."""
        rng = np.random.default_rng(sum(lengths))
        vocabulary = self.spec.backbone.vocab_size
        tokens = [Tokens(rng.integers(3, vocabulary, n), num_masked=n // 5) for n in lengths]
        return collate(tokens, self.spec.text.pad_id)
