"""This file owns the two ways of writing a decoder's operations in ONNX.

Opset 23 has Attention, RMSNormalization and RotaryEmbedding as single operators (TensorRT >= 10.15,
TensorRT for RTX, ONNX Runtime >= 1.23). Opset 20 spells them out in operators every engine knows;
its MatMul-Softmax-MatMul form is what TensorRT fuses, with the scale multiplied in before the
first product. Shapes: B batch, S sequence, D hidden, H query heads, N key heads, G = H/N, K width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import onnx_ir as ir

from nvembed_deploy.export.builder import GraphBuilder
from nvembed_deploy.spec import BackboneSpec

DROPPED = -30000.0
"""Additive score of a padded key: exp() of it is 0 in every precision, and adding a score to it
stays inside float16 (-65504), where finfo.min would overflow to -inf."""


@dataclass(frozen=True)
class Angles:
    """Rotary cosines and sines, [S, K/2], in the graph's precision, and positions [B, S]."""

    cos_SK: ir.Value
    sin_SK: ir.Value
    positions_BS: ir.Value


class Projected(NamedTuple):
    """What a layer's attention reads, [B, S, heads * K] each; `name` is that of its weights."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    name: str


class Dialect(Protocol):
    """How the operations that differ between opsets are written."""

    opset: int

    def rms_norm(self, x: ir.Value, gain: ir.Value, eps: float) -> ir.Value:
        """Return x / rms(x) * gain over the last axis, all of it float32."""
        ...

    def mask(self, mask_B11S: ir.Value, ids_BS: ir.Value) -> ir.Value:
        """Return the additive mask in the shape `attention` takes, made once per graph."""
        ...

    def attention(self, projected: Projected, mask: ir.Value, angles: Angles) -> ir.Value:
        """Return mixed_BSD from projected q_BSD, k, v: rotary positions, then attention."""
        ...


class FusedDialect:
    """Opset 23: one operator each."""

    opset = 23

    def __init__(self, builder: GraphBuilder, spec: BackboneSpec) -> None:
        """Write into `builder`."""
        self._b, self._spec = builder, spec

    def rms_norm(self, x: ir.Value, gain: ir.Value, eps: float) -> ir.Value:
        """See `Dialect`."""
        return self._b.op("RMSNormalization", x, gain, axis=-1, epsilon=eps, stash_type=1)

    def mask(self, mask_B11S: ir.Value, ids_BS: ir.Value) -> ir.Value:
        """See `Dialect`. ONNX Runtime 1.32 wants a row per query: [B, 1, S, S]."""
        b = self._b
        batch, length = (b.op("Shape", ids_BS, start=i, end=i + 1) for i in (0, 1))
        shape = b.op("Concat", batch, b.constant([1]), length, length, axis=0)
        return b.op("Expand", mask_B11S, shape)

    def attention(self, projected: Projected, mask: ir.Value, angles: Angles) -> ir.Value:
        """See `Dialect`. Key heads stay grouped: Attention repeats nothing."""
        b, spec = self._b, self._spec
        q, k, v = split_projected(b, spec, projected)
        q, k = (rotate(b, x, angles) for x in (q, k))
        mixed = b.op("Attention", q, k, v, mask, name="attention", is_causal=0)
        return join_heads(b, mixed, spec.num_heads * spec.head_width)


class DecomposedDialect:
    """Opset 20: elementary operators."""

    opset = 20

    def __init__(self, builder: GraphBuilder, spec: BackboneSpec) -> None:
        """Write into `builder`."""
        self._b, self._spec = builder, spec

    def rms_norm(self, x: ir.Value, gain: ir.Value, eps: float) -> ir.Value:
        """See `Dialect`."""
        b = self._b
        mean = b.op("ReduceMean", b.op("Mul", x, x), b.constant([-1]), keepdims=1)
        root = b.op("Sqrt", b.op("Add", mean, b.constant(eps, ir.DataType.FLOAT)))
        return b.op("Mul", b.op("Div", x, root), gain)

    def mask(self, mask_B11S: ir.Value, ids_BS: ir.Value) -> ir.Value:
        """See `Dialect`. Broadcast over queries as it is."""
        return mask_B11S

    def attention(self, projected: Projected, mask: ir.Value, angles: Angles) -> ir.Value:
        """See `Dialect`. The G query heads of a key head are laid along the sequence.

        The mask depends on keys only, so [B, N, G*S, K] x [B, N, K, S] needs no repeated keys.
        """
        b, spec = self._b, self._spec
        q, k, v = split_projected(b, spec, projected)
        q, k = (self._rotate(x, angles) for x in (q, k))
        q = group_queries(b, spec, b.op("Mul", q, b.constant(spec.head_width**-0.5)))
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]), name="scores")
        weights = b.op("Softmax", b.op("Add", scores, mask), axis=-1)
        mixed = b.op("MatMul", weights, v, name="attention")
        return join_groups(b, spec, mixed, v)

    def _rotate(self, x_BHSK: ir.Value, angles: Angles) -> ir.Value:
        """Rotate the two halves of each head (rotate-half order, as Hugging Face stores heads)."""
        b, half = self._b, self._spec.head_width // 2
        first, second = b.ops("Split", [x_BHSK, b.constant([half, half])], 2, axis=-1)
        low = b.op("Sub", b.op("Mul", first, angles.cos_SK), b.op("Mul", second, angles.sin_SK))
        high = b.op("Add", b.op("Mul", second, angles.cos_SK), b.op("Mul", first, angles.sin_SK))
        return b.op("Concat", low, high, axis=-1)


class CpuDialect(FusedDialect):
    """Opset 23 for ONNX Runtime on the CPU, whose kernels take heads side by side.

    Without four transpositions a layer: 5 % of the time of 16 texts of 64 tokens in int8.
    """

    def attention(self, projected: Projected, mask: ir.Value, angles: Angles) -> ir.Value:
        """See `Dialect`."""
        b, (q, k, v, _) = self._b, projected
        heads, key_heads = self._spec.num_heads, self._spec.num_kv_heads
        q = rotate(b, q, angles, num_heads=heads)
        k = rotate(b, k, angles, num_heads=key_heads)
        counts = {"q_num_heads": heads, "kv_num_heads": key_heads}
        return b.op("Attention", q, k, v, mask, name="attention", is_causal=0, **counts)


DIALECTS: dict[int, type[FusedDialect] | type[DecomposedDialect]] = {
    23: FusedDialect,
    20: DecomposedDialect,
}


def rotate(b: GraphBuilder, x: ir.Value, angles: Angles, **sides: Any) -> ir.Value:  # noqa: ANN401
    """Turn x [B, heads, S, K] to its positions by opset 23's own operator.

    Args:
        b: the graph.
        x: queries or keys.
        angles: by how much.
        sides: `num_heads`, where heads lie side by side: [B, S, heads*K].
    """
    return b.op("RotaryEmbedding", x, angles.cos_SK, angles.sin_SK, angles.positions_BS, **sides)


def split_projected(
    b: GraphBuilder, spec: BackboneSpec, projected: Projected
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return q [B, H, S, K], and k and v [B, N, S, K]."""
    width, key_heads = spec.head_width, spec.num_kv_heads
    q = split_heads(b, projected.q, spec.num_heads, width)
    k = split_heads(b, projected.k, key_heads, width)
    return q, k, split_heads(b, projected.v, key_heads, width)


def split_heads(b: GraphBuilder, x_BSD: ir.Value, heads: int, width: int) -> ir.Value:
    """[B, S, heads*width] to [B, heads, S, width]."""
    split = b.op("Reshape", x_BSD, b.constant([0, 0, heads, width]))
    return b.op("Transpose", split, perm=[0, 2, 1, 3])


def join_heads(b: GraphBuilder, x_BHSK: ir.Value, width: int) -> ir.Value:
    """[B, heads, S, K] to [B, S, width]."""
    turned = b.op("Transpose", x_BHSK, perm=[0, 2, 1, 3])
    return b.op("Reshape", turned, b.constant([0, 0, width]))


def group_queries(b: GraphBuilder, spec: BackboneSpec, q_BHSK: ir.Value) -> ir.Value:
    """Lay the query heads of each key head along the sequence: [B, N, G*S, K]."""
    if spec.num_heads == spec.num_kv_heads:
        return q_BHSK
    return b.op("Reshape", q_BHSK, b.constant([0, spec.num_kv_heads, -1, spec.head_width]))


def join_groups(b: GraphBuilder, spec: BackboneSpec, mixed: ir.Value, v_BNSK: ir.Value) -> ir.Value:
    """Undo `group_queries`, and join the heads: [B, S, D]."""
    if spec.num_heads != spec.num_kv_heads:
        length = b.op("Shape", v_BNSK, start=2, end=3)
        shape = [b.constant([0, spec.num_heads]), length, b.constant([spec.head_width])]
        mixed = b.op("Reshape", mixed, b.op("Concat", *shape, axis=0))
    return join_heads(b, mixed, spec.num_heads * spec.head_width)
