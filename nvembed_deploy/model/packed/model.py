"""This file owns the packed model: embeddings of a packed batch.

Shapes: T tokens, R rows, B texts, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional

from nvembed_deploy.model.packed.batch import PackedBatch, pack
from nvembed_deploy.model.packed.layer import Angles, Layer, Norm, Stream
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.pooler import Pooler, load_pooler
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.text import Batch


@dataclass(frozen=True)
class PackedModel:
    """The model on one device. Its states are float32, whatever its products are."""

    spec: ModelSpec
    embedding_VD: torch.Tensor
    layers: tuple[Layer, ...]
    final_gain_D: torch.Tensor
    pooler: Pooler

    @classmethod
    def load(cls, spec: ModelSpec, loader: Loader) -> PackedModel:
        """Read a model, layer by layer."""
        indices = range(spec.backbone.num_layers)
        return cls(
            spec,
            embedding_VD=loader.tensor("backbone.embed_tokens.weight", loader.dtype),
            layers=tuple(Layer.load(index, spec.backbone, loader) for index in indices),
            final_gain_D=loader.tensor("backbone.norm.weight"),
            pooler=load_pooler(spec, loader),
        )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.embedding_VD.device

    def pack(self, batch: Batch) -> PackedBatch:
        """Lay a padded batch out for this model, on the host."""
        return pack(batch, self.spec.pooler.pooling)

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return embedding_BD, float32, of length 1."""
        states_TD = self.embedding_VD[batch.ids_T].float()
        angles = Angles.of(batch.position_T, self.spec.backbone)
        stream = self.layers[0].enter(states_TD)
        for layer, following in pairwise(self.layers):
            stream = layer(stream, angles, batch, following.norm)
        normal_RD = self._last(stream, angles, batch)
        return functional.normalize(self.pooler(normal_RD, batch), dim=-1)

    def _last(self, stream: Stream, angles: Angles, batch: PackedBatch) -> torch.Tensor:
        """Compute the last layer for the rows alone, where the kernels can leave out queries."""
        is_causal, final = self.spec.backbone.causal, Norm(self.final_gain_D, torch.float32)
        last = self.layers[-1](stream, angles, batch, final, only_rows=not is_causal)
        assert isinstance(last.normal, torch.Tensor)
        return last.normal[batch.rows_R] if is_causal else last.normal
