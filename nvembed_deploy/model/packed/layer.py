"""This file owns one decoder layer over a row of tokens.

Shapes: T tokens, R rows whose new states are wanted, D hidden, H heads, G key-value heads, K head
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nvembed_deploy.model.packed.attention import attend
from nvembed_deploy.model.packed.batch import PackedBatch, Segments
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.linear import Linear
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.spec import BackboneSpec


@dataclass(frozen=True)
class Angles:
    """Cosine and sine of every token's rotation, float32 [T, 1, K/2]."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, position_T: torch.Tensor, spec: BackboneSpec) -> Angles:
        """Compute them: theta_i = base^(-2i / head_width) (arXiv 2104.09864, section 3.4.2)."""
        pair = torch.arange(0, spec.head_width, 2, device=position_T.device).float()
        frequency = 1.0 / (spec.rope_theta ** (pair / spec.head_width))
        angle_T1K = (position_T.float()[:, None] * frequency)[:, None]
        return cls(angle_T1K.cos(), angle_T1K.sin())


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward, each added to float32 states."""

    spec: BackboneSpec
    kernels: Kernels
    dtype: torch.dtype
    attention_gain_D: torch.Tensor
    query_key_value: Linear
    output: Linear
    feed_gain_D: torch.Tensor
    gate_up: Linear
    down: Linear

    @classmethod
    def load(cls, index: int, spec: BackboneSpec, loader: Loader) -> Layer:
        """Read layer `index`."""
        prefix = f"backbone.layers.{index}."
        projections = (f"{prefix}self_attn.{name}_proj" for name in "qkv")
        return cls(
            spec,
            loader.kernels,
            loader.dtype,
            attention_gain_D=loader.tensor(f"{prefix}input_layernorm.weight"),
            query_key_value=loader.linear(*projections),
            output=loader.linear(f"{prefix}self_attn.o_proj"),
            feed_gain_D=loader.tensor(f"{prefix}post_attention_layernorm.weight"),
            gate_up=loader.linear(f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"),
            down=loader.linear(f"{prefix}mlp.down_proj"),
        )

    def __call__(
        self,
        states_TD: torch.Tensor,
        angles: Angles,
        batch: PackedBatch,
        *,
        only_rows: bool = False,
    ) -> torch.Tensor:
        """Return the new states, float32 [T, D], or [R, D] of the batch's rows alone."""
        normal_TD = self._normal(states_TD, self.attention_gain_D)
        query, key, value = self._heads(self.query_key_value(normal_TD))
        query, key = (self.kernels.rotate(x, angles.cos, angles.sin) for x in (query, key))
        queries: Segments = batch.texts
        if only_rows:
            query, states_TD, queries = query[batch.rows_R], states_TD[batch.rows_R], batch.kept
        mixed = attend(
            query, key, value, queries=queries, keys=batch.texts, is_causal=self.spec.causal
        )
        states_TD = states_TD + self.output(mixed.flatten(1))
        gate_up = self.gate_up(self._normal(states_TD, self.feed_gain_D))
        return states_TD + self.down(self.kernels.silu_gate(gate_up))

    def _normal(self, states_TD: torch.Tensor, gain_D: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(states_TD, gain_D, self.spec.rms_norm_eps, self.dtype)

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cut [T, (H + 2 G) K] into queries [T, H, K], keys and values [T, G, K]."""
        heads = [self.spec.num_heads, self.spec.num_kv_heads, self.spec.num_kv_heads]
        return torch.split(x.view(len(x), -1, self.spec.head_width), heads, dim=1)
