"""This file owns writing a linear: a product with a stored weight, quantised or not, and its bias.

Quantised weights are explicit: codes, scales and DequantizeLinear; inputs pass QuantizeLinear and
DequantizeLinear. An engine that fuses the three computes in 8 bits, any other gives equal values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from nvembed_deploy.export.builder import DATA_TYPES, GraphBuilder
from nvembed_deploy.export.formats import (
    SMALLEST_ROW,
    WIDER,
    Activations,
    Code,
    Formats,
    LinearFormat,
)

CODE_TYPES = {
    Code.INT8: ir.DataType.INT8,
    Code.INT4: ir.DataType.INT4,
    Code.FP8: ir.DataType.FLOAT8E4M3FN,
}
BASIS = ".basis"
"""Of an input's principal directions, [in, rank], after the first linear that reads the input."""

Move = Callable[[ir.Value], ir.Value]


def stay(x: ir.Value) -> ir.Value:
    """Leave rows where they are."""
    return x


def round_to(b: GraphBuilder, x: ir.Value, scale: ir.Value, code: Code) -> ir.Value:
    """Return x as a code keeps it: quantised with one scale for all of it, and dequantised."""
    dtype = CODE_TYPES[code]
    zero = b.table(f"zero_{dtype.name.lower()}", np.zeros((), dtype.numpy()))
    return b.op("DequantizeLinear", b.op("QuantizeLinear", x, scale, zero), scale, zero)


class LinearWriter:
    """Writes linears into a builder; their weights are stored transposed, as `NAME.weight_t`."""

    def __init__(self, builder: GraphBuilder, formats: Formats) -> None:
        """Write into `builder`, each linear in its format."""
        self._b, self._formats = builder, formats
        self._rows: dict[tuple[str, Activations], tuple[ir.Value, ir.Value]] = {}
        self._tensors: dict[str, ir.Value] = {}
        self._moved: dict[tuple[str, str], ir.Value] = {}

    def __call__(
        self,
        x: ir.Value,
        name: str,
        sizes: tuple[int, int],
        *,
        bias: bool = False,
        move: Move = stay,
    ) -> ir.Value:
        """Return x [.., in] @ W [in, out] (+ b), in the graph's precision.

        `move` takes the rows of x to where the product has them (see `layout.py`).
        """
        form = self._formats.of(name, sizes[0])
        if form is None:
            weight = self._b.weight(name + ".weight_t", sizes)
            product = self._b.op("MatMul", self._move(x, move), weight, name=name)
        else:
            product = self._rounded(x, name, sizes, form, move)
        if not bias:
            return product
        return self._b.op("Add", product, self._b.weight(name + ".bias", sizes[1:]))

    def _rounded(
        self, x: ir.Value, name: str, sizes: tuple[int, int], form: LinearFormat, move: Move
    ) -> ir.Value:
        """Return the product with the weight's codes, x rounded as the format says."""
        x = self._move(x, move)
        if form.activations is Activations.ROW:
            return self._by_row(x, name, sizes, form)
        x = self._by_tensor(x, name, form) if form.activations is Activations.STATIC else x
        return self._b.op("MatMul", x, self._dequantized(name, sizes, form), name=name)

    def _move(self, x: ir.Value, move: Move) -> ir.Value:
        """Move rows once for all linears that read them."""
        key = str(x.name), move.__name__
        if key not in self._moved:
            self._moved[key] = move(x)
        return self._moved[key]

    def _by_row(
        self, x: ir.Value, name: str, sizes: tuple[int, int], form: LinearFormat
    ) -> ir.Value:
        """Quantise x / rowmax(|x|), multiply, and multiply the rows by rowmax(|x|) again."""
        b, key = self._b, (str(x.name), form.activations)
        if key not in self._rows:  # q, k and v share an input, gate and up another
            self._rows[key] = self._quantized_rows(self._parts(x, name, sizes[0], form), form.code)
        rows, largest = self._rows[key]
        sizes = (sizes[0] + WIDER * form.rank, sizes[1])
        product = b.op("MatMul", rows, self._dequantized(name, sizes, form), name=name)
        return b.op("Mul", product, largest)

    def _parts(
        self, x: ir.Value, name: str, num_inputs: int, form: LinearFormat
    ) -> tuple[ir.Value, ...]:
        """Return x; where directions are rounded twice, what is left of it and its part there."""
        if not form.rank:
            return (x,)
        b = self._b
        basis = b.weight(name + BASIS, (num_inputs, form.rank))
        along = b.op("MatMul", x, basis)
        back = b.op("MatMul", along, b.op("Transpose", basis, perm=[1, 0]))
        return b.op("Sub", x, back), along

    def _quantized_rows(self, parts: tuple[ir.Value, ...], code: Code) -> tuple[ir.Value, ir.Value]:
        """Return a row's parts rounded in one range, and its largest value; see `principal.py`.

        Joined before the largest is found: TensorRT does both in one kernel, apart in two.
        """
        b, last = self._b, self._b.constant([-1])
        whole = parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=-1)
        largest = b.op("ReduceMax", b.op("Abs", whole), last, keepdims=1)
        divisor = b.op("Max", largest, b.constant(SMALLEST_ROW))
        rows = b.op("Div", whole, divisor)
        for part in parts[1:]:
            along = b.op("Div", part, divisor)
            second = b.op("Sub", along, self._rounded_to(along, code))
            rows = b.op("Concat", rows, second, along, axis=-1)
        return self._rounded_to(rows, code), divisor

    def _rounded_to(self, x: ir.Value, code: Code) -> ir.Value:
        return round_to(self._b, x, self._b.constant(1 / code.greatest), code)

    def _by_tensor(self, x: ir.Value, name: str, form: LinearFormat) -> ir.Value:
        """Quantise x in one calibrated range for all tokens and texts."""
        b, key = self._b, str(x.name)
        if key not in self._tensors:
            scale = b.declare(name + ".input_scale", (), DATA_TYPES[b.compute])
            self._tensors[key] = round_to(b, x, scale, form.code)
        return self._tensors[key]

    def _dequantized(self, name: str, sizes: tuple[int, int], form: LinearFormat) -> ir.Value:
        b, compute = self._b, DATA_TYPES[self._b.compute]
        codes = b.declare(name + ".weight_t", sizes, CODE_TYPES[form.code])
        if form.block is None:
            scale = b.declare(name + ".weight_scale", sizes[1:], compute)
            return b.op("DequantizeLinear", codes, scale, axis=1)
        blocks = (sizes[0] // form.block, sizes[1])
        scale = b.declare(name + ".weight_scale", blocks, compute)
        return b.op("DequantizeLinear", codes, scale, axis=0, block_size=form.block)
