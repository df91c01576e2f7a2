"""This file owns writing a linear for ONNX Runtime's 8-bit kernels on the CPU.

They are fast with an unsigned left side (AMX and VNNI multiply unsigned by signed bytes; signed by
signed is 36 times slower), so a zero code is 128. The product, both scales and the offset are one
operator. Values are those of `linear.py`'s form with the same format.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nvembed_deploy.export.formats import SMALLEST_ROW, Activations, LinearFormat
from nvembed_deploy.export.linear import CODE_TYPES, LinearWriter, Move

_ZERO = 128


class CpuLinearWriter(LinearWriter):
    """Writes W8A8 linears as com.microsoft.MatMulIntegerToFloat; float ones as they are."""

    def _rounded(
        self, x: ir.Value, name: str, sizes: tuple[int, int], form: LinearFormat, move: Move
    ) -> ir.Value:
        """Return the product with the weight's codes. What is moved are codes: a byte each."""
        if form.activations is Activations.FLOAT:
            return super()._rounded(x, name, sizes, form, move)
        b, is_row = self._b, form.activations is Activations.ROW
        key, step = (str(x.name), form.activations), b.constant(1 / form.code.greatest)
        if key not in self._rows:
            self._rows[key] = self._row_codes(x, step) if is_row else self._tensor_codes(x, name)
        codes, factor = self._rows[key]
        codes, factor = self._move(codes, move), self._move(factor, move) if is_row else factor
        weight = b.declare(name + ".weight_t", sizes, CODE_TYPES[form.code])
        weight_scale = b.declare(name + ".weight_scale", sizes[1:], ir.DataType.FLOAT)
        scale = step if is_row else factor
        product = b.op(
            "MatMulIntegerToFloat", codes, weight, scale, weight_scale, self._zero_code(), name=name
        )
        return b.op("Mul", product, factor) if is_row else product

    def _row_codes(self, x: ir.Value, step: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return codes of x / rowmax(|x|), and rowmax(|x|) [.., 1]."""
        b, last = self._b, self._b.constant([-1])
        # Two reductions are half the time of Abs and one: nothing as large as x is written.
        greatest = b.op("ReduceMax", x, last, keepdims=1)
        least = b.op("ReduceMin", x, last, keepdims=1)
        largest = b.op("Max", greatest, b.op("Neg", least), b.constant(SMALLEST_ROW))
        return self._codes(b.op("Div", x, largest), step), largest

    def _tensor_codes(self, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        """Return codes of x in its calibrated range, and their scale, a scalar."""
        scale = self._b.declare(name + ".input_scale", (), ir.DataType.FLOAT)
        return self._codes(x, scale), scale

    def _codes(self, x: ir.Value, scale: ir.Value) -> ir.Value:
        return self._b.op("QuantizeLinear", x, scale, self._zero_code())

    def _zero_code(self) -> ir.Value:
        return self._b.table("zero_uint8", np.array(_ZERO, np.uint8))
