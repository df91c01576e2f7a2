"""This file owns one decoder layer over a row of tokens.

Shapes: T tokens, R rows whose new states are wanted, D hidden, H heads, G key-value heads, K head
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from nvembed_deploy.model.packed.attention import attend
from nvembed_deploy.model.packed.batch import PackedBatch, Segments
from nvembed_deploy.model.packed.kernels import Input, Kernels
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


class Norm(NamedTuple):
    """An RMSNorm before a linear: its gain, and the format that the linear takes."""

    gain_D: torch.Tensor
    out: torch.dtype


class Stream(NamedTuple):
    """The states between two layers, float32 [T, D], and their norm as the next one takes it."""

    states: torch.Tensor
    normal: Input


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward, each added to float32 states."""

    spec: BackboneSpec
    kernels: Kernels
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
            attention_gain_D=loader.tensor(f"{prefix}input_layernorm.weight"),
            query_key_value=loader.linear(*projections),
            output=loader.linear(f"{prefix}self_attn.o_proj"),
            feed_gain_D=loader.tensor(f"{prefix}post_attention_layernorm.weight"),
            gate_up=loader.linear(f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"),
            down=loader.linear(f"{prefix}mlp.down_proj"),
        )

    @property
    def norm(self) -> Norm:
        """What its input goes through."""
        return Norm(self.attention_gain_D, self.query_key_value.takes)

    def enter(self, states_TD: torch.Tensor) -> Stream:
        """Return what the layer starts from where none is before it."""
        gain_D, out = self.norm
        return Stream(
            states_TD, self.kernels.rms_norm(states_TD, gain_D, self.spec.rms_norm_eps, out)
        )

    def __call__(
        self,
        stream: Stream,
        angles: Angles,
        batch: PackedBatch,
        following: Norm,
        *,
        only_rows: bool = False,
    ) -> Stream:
        """Return the new states, or only the batch's rows, and their norm for `following`.

        A norm is one kernel with the sum before it, so each layer ends with the next one's.
        """
        states_TD = stream.states
        query, key, value = self._heads(self.query_key_value(stream.normal), angles)
        queries: Segments = batch.texts
        if only_rows:
            query, states_TD, queries = query[batch.rows_R], states_TD[batch.rows_R], batch.kept
        mixed = attend(
            query, key, value, queries=queries, keys=batch.texts, is_causal=self.spec.causal
        )
        feed = Norm(self.feed_gain_D, self.gate_up.takes)
        stream = self._add(states_TD, self.output(mixed.flatten(1)), feed)
        gated = self.kernels.silu_gate(self.gate_up(stream.normal), self.down.takes)
        return self._add(stream.states, self.down(gated), following)

    def _add(self, states_TD: torch.Tensor, update_TD: torch.Tensor, norm: Norm) -> Stream:
        epsilon = self.spec.rms_norm_eps
        return Stream(
            *self.kernels.add_rms_norm(states_TD, update_TD, norm.gain_D, epsilon, norm.out)
        )

    def _heads(self, x: torch.Tensor, angles: Angles) -> tuple[torch.Tensor, ...]:
        """Cut [T, (H + 2 G) K] into turned queries [T, H, K] and keys, and values [T, G, K].

        Queries and keys lie side by side, and are turned in one go.
        """
        heads_THK = x.view(len(x), -1, self.spec.head_width)
        num_turned = self.spec.num_heads + self.spec.num_kv_heads
        turned = self.kernels.rotate(heads_THK[:, :num_turned], angles.cos, angles.sin)
        query, key = torch.split(turned, [self.spec.num_heads, self.spec.num_kv_heads], dim=1)
        return query, key, heads_THK[:, num_turned:]
