"""This file owns the mean over a text's pooled tokens, in the graph.

Shapes: B batch, S sequence, P pooled tokens of all texts, D hidden, F feed width.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nvembed_deploy.export.builder import DATA_TYPES, GraphBuilder
from nvembed_deploy.spec import Precision

EPS = 1e-12
"""Smallest number divided by, as torch.nn.functional.normalize has it."""


class Mean:
    """The mean over tokens that lie in [B, S, ..]: [B, D or F], float32 or as it comes."""

    def __init__(self, builder: GraphBuilder, pool_mask_BS: ir.Value) -> None:
        """Count the tokens."""
        self._b, one = builder, builder.constant(1.0, ir.DataType.FLOAT)
        kept = builder.op("Cast", pool_mask_BS, to=ir.DataType.FLOAT)
        count = builder.op("ReduceSum", kept, builder.constant([-1]), keepdims=1)
        self.is_any_kept_B1 = builder.op("Min", count, one)
        self._share_BS = builder.op("Div", kept, builder.op("Max", count, one))

    def of_states(self, states_BSD: ir.Value) -> ir.Value:
        """Average float32 states by multiplying and adding: no engine's float32 GEMM is needed."""
        b = self._b
        shares = b.op("Unsqueeze", self._share_BS, b.constant([2]))
        return b.op("ReduceSum", b.op("Mul", states_BSD, shares), b.constant([1]), keepdims=0)

    def of_features(self, features_BSF: ir.Value) -> ir.Value:
        """Average features in the graph's precision as a product, [B, 1, S] x [B, S, F].

        Dividing by the float32 sum of the rounded 1/count removes its rounding.
        """
        b, share = self._b, self._share_BS
        rounds = b.compute is not Precision.FP32
        share = b.op("Cast", share, to=DATA_TYPES[b.compute]) if rounds else share
        mixed = b.op("MatMul", b.op("Unsqueeze", share, b.constant([1])), features_BSF)
        mean_BF = b.op("Squeeze", mixed, b.constant([1]))
        if not rounds:
            return mean_BF
        total = b.op("ReduceSum", b.widen(share), b.constant([-1]), keepdims=1)
        floor = b.op("Max", total, b.constant(EPS, ir.DataType.FLOAT))
        return b.op("Div", b.widen(mean_BF), floor)


class RowMean(Mean):
    """The mean over tokens that lie one after another, [1, P, ..], in float32."""

    def __init__(self, builder: GraphBuilder, pool_mask_BS: ir.Value, places_P: ir.Value) -> None:
        """Give each text its share of each token, [B, P]: 0 of those of others.

        `places_P` are the tokens' slots of B * S, in order.
        """
        super().__init__(builder, pool_mask_BS)
        b = builder
        size_1, length_1 = (b.op("Shape", pool_mask_BS, start=i, end=i + 1) for i in (0, 1))
        zero, one = (b.table(n, np.array(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
        texts = b.op("Range", zero, b.op("Squeeze", size_1), one)
        owner_P = b.op("Div", places_P, length_1)
        is_own_BP = b.op("Equal", b.op("Unsqueeze", texts, b.constant([1])), owner_P)
        flat = b.op("Reshape", self._share_BS, b.constant([-1]))
        share_P = b.op("Gather", flat, places_P, axis=0)
        self._share_BP = b.op("Mul", b.op("Cast", is_own_BP, to=ir.DataType.FLOAT), share_P)

    def of_states(self, states_PD: ir.Value) -> ir.Value:
        """Average as a product, [B, P] x [P, D]: a processor's float32 GEMM is exact enough."""
        b = self._b
        return b.op("MatMul", self._share_BP, b.op("Squeeze", states_PD, b.constant([0])))

    def of_features(self, features_PF: ir.Value) -> ir.Value:
        """Average likewise."""
        return self.of_states(features_PF)
