"""This file owns where a graph's tokens lie: padded as they come, or without the padding.

Linears, norms and the pooler need no text beside another: on a processor, where a kernel takes any
number of rows, they compute the kept tokens of all texts as one row of T. Attention alone needs
texts apart: they are spread over the padded slots before the products that it reads, and taken from
them before the one that reads it, where a token is fewest bytes.
Shapes: B batch, S sequence, D features, T kept tokens, P pooled tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nvembed_deploy.export.builder import GraphBuilder
from nvembed_deploy.export.mean import Mean, RowMean


class Padded:
    """Every slot is computed: what engines with fixed shapes take."""

    def __init__(
        self, builder: GraphBuilder, attention_mask_BS: ir.Value, pool_mask_BS: ir.Value
    ) -> None:
        """Write into `builder`."""
        self._b, self._pool_mask_BS = builder, pool_mask_BS

    def ids(self, ids_BS: ir.Value) -> ir.Value:
        """Return the numbers of the tokens that are computed."""
        return ids_BS

    def kept(self, x_BSD: ir.Value) -> ir.Value:
        """Return the tokens that are computed."""
        return x_BSD

    def spread(self, x: ir.Value) -> ir.Value:
        """Undo `kept`; what lies in padded slots is anything finite."""
        return x

    def pooled(self, x_BSD: ir.Value) -> ir.Value:
        """Return the tokens that are pooled."""
        return x_BSD

    def pooled_of_kept(self, x: ir.Value) -> ir.Value:
        """Return those of the kept tokens that are pooled."""
        return x

    def mean(self) -> Mean:
        """Return what averages pooled tokens."""
        return Mean(self._b, self._pool_mask_BS)


class Unpadded:
    """Kept tokens alone, [1, T, ..], and pooled ones, [1, P, ..]; see `Padded` for the methods.

    Source: arXiv 2210.03052 section III.D, the zero padding algorithm.
    """

    def __init__(
        self, builder: GraphBuilder, attention_mask_BS: ir.Value, pool_mask_BS: ir.Value
    ) -> None:
        """Find the tokens, once per graph. What is pooled must be attended."""
        self._b = b = builder
        with b.scope("layout"):
            row = b.op("Reshape", attention_mask_BS, b.constant([-1]))
            pool_row = b.op("Reshape", pool_mask_BS, b.constant([-1]))
            self._kept_T, self._pooled_P = self._places(row), self._places(pool_row)
            first = b.table("zero", np.array(0, np.int64))  # CumSum's axis is a scalar
            rank = b.op("Sub", b.op("CumSum", row, first), b.constant([1]))
            self._slots_BS = b.op("Reshape", rank, b.op("Shape", attention_mask_BS))
            self._pooled_of_kept_P = b.op("Gather", rank, self._pooled_P, axis=0)
        self._pool_mask_BS = pool_mask_BS

    def _places(self, row: ir.Value) -> ir.Value:
        return self._b.op("Squeeze", self._b.op("NonZero", row), self._b.constant([0]))

    def ids(self, ids_BS: ir.Value) -> ir.Value:
        """See `Padded`: [1, T]."""
        row = self._b.op("Reshape", ids_BS, self._b.constant([1, -1]))
        return self._b.op("Gather", row, self._kept_T, axis=1)

    def kept(self, x_BSD: ir.Value) -> ir.Value:
        """See `Padded`: [1, T, D]."""
        return self._take(x_BSD, self._kept_T)

    def spread(self, x_TD: ir.Value) -> ir.Value:
        """See `Padded`: [B, S, D], in padded slots the token before them."""
        spread = self._b.op("Gather", x_TD, self._slots_BS, axis=1)
        return self._b.op("Squeeze", spread, self._b.constant([0]))

    def pooled(self, x_BSD: ir.Value) -> ir.Value:
        """See `Padded`: [1, P, D]."""
        return self._take(x_BSD, self._pooled_P)

    def pooled_of_kept(self, x_TD: ir.Value) -> ir.Value:
        """See `Padded`: [1, P, D]."""
        return self._b.op("Gather", x_TD, self._pooled_of_kept_P, axis=1)

    def mean(self) -> Mean:
        """See `Padded`."""
        return RowMean(self._b, self._pool_mask_BS, self._pooled_P)

    def _take(self, x_BSD: ir.Value, places: ir.Value) -> ir.Value:
        row = self._b.op("Reshape", x_BSD, self._b.constant([1, -1, 0]))
        return self._b.op("Gather", row, places, axis=1)


Layout = Padded | Unpadded
