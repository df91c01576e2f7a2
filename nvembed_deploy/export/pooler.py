"""This file owns the pooler's part of the graph: latent attention, feed-forward, mean, length 1.

Token states, norms and means are float32; linears run in the graph's precision.
Shapes: B batch, S sequence, D hidden, H heads, K head width, L latents, F feed width.
"""

from __future__ import annotations

import onnx_ir as ir

from nvembed_deploy.export.builder import GraphBuilder
from nvembed_deploy.export.linear import LinearWriter
from nvembed_deploy.export.mean import EPS, Mean
from nvembed_deploy.spec import ModelSpec, PoolerForm, Pooling


def unit_length(b: GraphBuilder, pooled_BD: ir.Value) -> ir.Value:
    """Divide each float32 row by its length."""
    norm = b.op("ReduceL2", pooled_BD, b.constant([-1]), keepdims=1)
    floor = b.op("Max", norm, b.constant(EPS, ir.DataType.FLOAT))
    return b.op("Div", pooled_BD, floor)


class PoolerWriter:
    """Writes the pooler of a spec into a builder."""

    def __init__(
        self, builder: GraphBuilder, linear: LinearWriter, spec: ModelSpec, form: PoolerForm
    ) -> None:
        """Write into `builder`, linears through `linear`."""
        self._b, self._linear, self._form = builder, linear, form
        self._spec, self._hidden = spec.pooler, spec.backbone.hidden_size

    def __call__(self, states_BSD: ir.Value, mean: Mean) -> ir.Value:
        """Return pooled_BD, float32, not normalised; zeros for a text with no kept token."""
        b, spec = self._b, self._spec
        if spec.pooling is Pooling.MEAN:
            return mean.of_states(states_BSD)
        states_BSD, gated_BSF = self._latent_states(states_BSD)
        # The last linear commutes with the mean: one row per text instead of one per token.
        average = b.narrow(mean.of_features(gated_BSF))
        sizes = (spec.feed_width, self._hidden)
        projected = b.widen(self._linear(average, "pooler.feed_down", sizes, bias=True))
        pooled = b.op("Add", projected, mean.of_states(states_BSD))
        return b.op("Mul", pooled, mean.is_any_kept_B1)

    def _latent_states(self, states_BSD: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return states after cross-attention [B, S, D], float32, and gated features [B, S, F]."""
        b, spec = self._b, self._spec
        normal = self._layer_norm(states_BSD, "pooler.query_norm")
        is_folded = self._form is PoolerForm.FOLDED
        mixed = self._folded_attention(normal) if is_folded else self._faithful_attention(normal)
        states_BSD = b.op("Add", states_BSD, b.widen(mixed))
        normal = self._layer_norm(states_BSD, "pooler.feed_norm")
        sizes = (self._hidden, 2 * spec.feed_width)
        both = self._linear(normal, "pooler.feed_up", sizes, bias=True)
        halves = b.constant([spec.feed_width, spec.feed_width])
        value, gate = b.ops("Split", [both, halves], 2, axis=-1)
        return states_BSD, b.op("Mul", value, b.op("Gelu", gate))

    def _folded_attention(self, normal_BSD: ir.Value) -> ir.Value:
        b, spec = self._b, self._spec
        wide = spec.num_heads * spec.num_latents
        scores = self._linear(normal_BSD, "pooler.scores", (self._hidden, wide))
        by_head = b.constant([0, 0, spec.num_heads, spec.num_latents])
        weights = b.op("Softmax", b.op("Reshape", scores, by_head), axis=-1)
        flat = b.op("Reshape", weights, b.constant([0, 0, wide]))
        return self._linear(flat, "pooler.values", (wide, self._hidden))

    def _faithful_attention(self, normal_BSD: ir.Value) -> ir.Value:
        """Attention over the latents as trained; keys and values are made once, not per text."""
        b, spec = self._b, self._spec
        heads, width = spec.num_heads, spec.head_width
        inner = heads * width
        latents = b.wide_weight("pooler.latents", (spec.num_latents, self._hidden))
        context = self._layer_norm(latents, "pooler.latent_norm")
        both = self._linear(context, "pooler.key_value", (self._hidden, 2 * inner))
        key, value = b.ops("Split", [both, b.constant([inner, inner])], 2, axis=-1)
        by_head = b.constant([spec.num_latents, heads, width])
        key_HKL = b.op("Transpose", b.op("Reshape", key, by_head), perm=[1, 2, 0])
        value_HLK = b.op("Transpose", b.op("Reshape", value, by_head), perm=[1, 0, 2])
        query = self._linear(normal_BSD, "pooler.query", (self._hidden, inner))
        query = b.op("Reshape", query, b.constant([0, 0, heads, width]))
        query = b.op("Mul", b.op("Transpose", query, perm=[0, 2, 1, 3]), b.constant(width**-0.5))
        weights = b.op("Softmax", b.op("MatMul", query, key_HKL), axis=-1)
        mixed = b.op("Transpose", b.op("MatMul", weights, value_HLK), perm=[0, 2, 1, 3])
        flat = b.op("Reshape", mixed, b.constant([0, 0, inner]))
        return self._linear(flat, "pooler.output", (inner, self._hidden))

    def _layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Return float32 `x` normalised in float32, narrowed for the linear that follows."""
        b, shape = self._b, (self._hidden,)
        gain, bias = (b.wide_weight(f"{name}.{part}", shape) for part in ("weight", "bias"))
        eps = self._spec.layer_norm_eps
        return b.narrow(
            b.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps, stash_type=1)
        )
