"""This file owns the poolers over rows: folded latent attention, self-attention, or plain means.

Exact: the mean is taken before the last projection, which is linear (see `fold.py` for the rest).
Shapes: R rows, B texts, D hidden, H heads, K head width, X heads * latents, F feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from nvembed_deploy.model.packed.attention import attend
from nvembed_deploy.model.packed.batch import PackedBatch, mean_by
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.linear import Linear
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.spec import ModelSpec, PoolerSpec, Pooling


class Pooler(Protocol):
    """From rows to one vector a text."""

    def __call__(self, states_RD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Return pooled_BD, float32, not normalised; zeros where a text has no row."""
        ...


def mean(states_RD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Return each text's mean; of `Pooling.EOS` the one row there is."""
    return mean_by(batch.average(), states_RD)


@dataclass(frozen=True)
class Norm:
    """A LayerNorm."""

    gain_D: torch.Tensor
    bias_D: torch.Tensor

    @classmethod
    def load(cls, name: str, loader: Loader) -> Norm:
        """Read the norm `name`."""
        return cls(loader.tensor(f"{name}.weight"), loader.tensor(f"{name}.bias"))


@dataclass(frozen=True)
class FoldedLatents:
    """Attention over the latents as two products."""

    num_heads: int
    scores: Linear
    values: Linear

    def __call__(self, normal_RD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Return what the latents give each row, [R, D]. Rows do not see each other."""
        del batch
        scores_RHL = torch.unflatten(self.scores(normal_RD).float(), -1, (self.num_heads, -1))
        return self.values(scores_RHL.softmax(-1).to(normal_RD.dtype).flatten(1))


@dataclass(frozen=True)
class SelfAttention:
    """Attention among a text's own rows."""

    spec: PoolerSpec
    query_key_value: Linear
    output: Linear

    def __call__(self, normal_RD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Return [R, D]. Every row must be one that is pooled."""
        heads_RHK = torch.unflatten(self.query_key_value(normal_RD), -1, (-1, self.spec.head_width))
        query, key, value = heads_RHK.chunk(3, dim=1)
        mixed = attend(query, key, value, queries=batch.kept, keys=batch.kept)
        return self.output(mixed.flatten(1))


@dataclass(frozen=True)
class AttentionPooler:
    """Attention and a GEGLU block, each added to the states, then the mean."""

    spec: PoolerSpec
    kernels: Kernels
    dtype: torch.dtype
    query_norm: Norm
    attention: FoldedLatents | SelfAttention
    feed_norm: Norm
    feed_up: Linear
    feed_down: Linear

    def __call__(self, states_RD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Return pooled_BD."""
        mixed_RD = self.attention(self._normal(states_RD, self.query_norm), batch)
        states_RD = states_RD + mixed_RD
        gated_RF = self.kernels.gelu_gate(self.feed_up(self._normal(states_RD, self.feed_norm)))
        average_BR = batch.average()
        gated_BF = mean_by(average_BR, gated_RF).to(self.dtype)
        pooled_BD = self.feed_down(gated_BF).float() + mean_by(average_BR, states_RD)
        # A text with no row gives zeros, not the projection's bias.
        return pooled_BD * average_BR.any(1, keepdim=True)

    def _normal(self, states_RD: torch.Tensor, norm: Norm) -> torch.Tensor:
        epsilon = self.spec.layer_norm_eps
        normal_RD = self.kernels.layer_norm(states_RD, norm.gain_D, norm.bias_D, epsilon)
        return normal_RD.to(self.dtype)


def load_pooler(spec: ModelSpec, loader: Loader) -> Pooler:
    """Read the pooler of a model; folded, if it is the latent one."""
    if not spec.pooler.pooling.has_weights:
        return mean
    is_latent = spec.pooler.pooling is Pooling.LATENT
    return AttentionPooler(
        spec.pooler,
        loader.kernels,
        loader.dtype,
        query_norm=Norm.load("pooler.query_norm", loader),
        attention=_latents(spec, loader) if is_latent else _self_attention(spec, loader),
        feed_norm=Norm.load("pooler.feed_norm", loader),
        feed_up=loader.linear("pooler.feed_up", has_bias=True),
        feed_down=loader.linear("pooler.feed_down", has_bias=True, is_dense=True),
    )


def _latents(spec: ModelSpec, loader: Loader) -> FoldedLatents:
    scores, values = loader.linear("pooler.scores"), loader.linear("pooler.values")
    return FoldedLatents(spec.pooler.num_heads, scores, values)


def _self_attention(spec: ModelSpec, loader: Loader) -> SelfAttention:
    projections = loader.linear("pooler.query", "pooler.key_value")
    return SelfAttention(spec.pooler, projections, loader.linear("pooler.output"))
