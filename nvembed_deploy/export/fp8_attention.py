"""This file owns attention in FP8: queries, keys, values and weights rounded to E4M3.

TensorRT fuses it into one FP8 kernel only in this form: elementary operators, Q/DQ on all four, the
weights' with the constant scale 1/448, heads of 64, 128 or 256, and a profile whose texts have 32
tokens at least (31 are not fused). Source: plans of TensorRT for RTX 1.7.1 for SM89 and SM120;
NVIDIA's Model-Optimizer, pull request 1289, for the scale. Shapes: as in `dialect.py`.
"""

from __future__ import annotations

import onnx_ir as ir

from nvembed_deploy.export.builder import DATA_TYPES
from nvembed_deploy.export.dialect import (
    Angles,
    FusedDialect,
    Projected,
    group_queries,
    join_groups,
    rotate,
    split_projected,
)
from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.linear import round_to
from nvembed_deploy.export.weight_file import OUTPUT_SCALE


class Fp8AttentionDialect(FusedDialect):
    """Opset 23 with attention spelled out and rounded."""

    def mask(self, mask_B11S: ir.Value, ids_BS: ir.Value) -> ir.Value:
        """See `Dialect`. Broadcast over queries as it is."""
        return mask_B11S

    def attention(self, projected: Projected, mask: ir.Value, angles: Angles) -> ir.Value:
        """See `Dialect`."""
        b, spec = self._b, self._spec
        q, k, v = split_projected(b, spec, projected)
        q, k = (rotate(b, x, angles) for x in (q, k))
        q = group_queries(b, spec, b.op("Mul", q, b.constant(spec.head_width**-0.5)))
        q, k, v = (
            round_to(b, x, self._scale(f"{projected.name}{part}_proj"), Code.FP8)
            for x, part in zip((q, k, v), "qkv", strict=True)
        )
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]), name="scores")
        weights = b.op("Softmax", b.op("Add", scores, mask), axis=-1)
        weights = round_to(b, weights, b.constant(1 / Code.FP8.greatest), Code.FP8)
        return join_groups(b, spec, b.op("MatMul", weights, v, name="attention"), v)

    def _scale(self, linear: str) -> ir.Value:
        return self._b.declare(linear + OUTPUT_SCALE, (), DATA_TYPES[self._b.compute])
