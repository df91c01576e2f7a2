"""This file owns writing a linear: a product with a stored weight, and its bias."""

from __future__ import annotations

import onnx_ir as ir

from nvembed_deploy.export.builder import GraphBuilder


class LinearWriter:
    """Writes linears into a builder; their weights are stored transposed, as `NAME.weight_t`."""

    def __init__(self, builder: GraphBuilder) -> None:
        """Write into `builder`."""
        self._b = builder

    def __call__(
        self, x: ir.Value, name: str, sizes: tuple[int, int], bias: bool = False
    ) -> ir.Value:
        """Return x [.., in] @ W [in, out] (+ b), in the graph's precision."""
        product = self._b.op("MatMul", x, self._b.weight(name + ".weight_t", sizes), name=name)
        if not bias:
            return product
        return self._b.op("Add", product, self._b.weight(name + ".bias", sizes[1:]))
