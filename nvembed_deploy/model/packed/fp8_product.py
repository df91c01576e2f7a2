"""This file owns FP8 products on a GPU: what the GPU and its build of torch can do is tried once.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import NamedTuple

import torch

from nvembed_deploy.errors import is_out_of_memory
from nvembed_deploy.model.packed.kernels import FP8, Rounded


class Shape(NamedTuple):
    """Of products that are refused together: those of about as many tokens, on one GPU."""

    device: str
    out: str
    outputs: int
    inputs: int
    most_tokens: int


NO_ROW_SCALES: set[Shape] = set()
"""Shapes whose product with a scale for each row was refused."""
_TRIED = 512, 256, 256
"""T, I, O of the product that shows what a GPU can do."""


class RowScales(StrEnum):
    """How a GPU multiplies with a scale for each row."""

    PLAIN = "plain"
    WITH_BIAS = "with a bias"
    NONE = "none"


def scaled_product(
    x: Rounded, codes_OI: torch.Tensor, scale_O: torch.Tensor, out: torch.dtype
) -> torch.Tensor:
    """Return the FP8 product [T, O], scaled by row and column, in the format `out`.

    Not every cuBLAS takes every shape with a scale for each row: few rows of many inputs are
    refused on an H100 (pytorch/ao issue 4582), and on an SM 12.0 all are (pytorch issue 192707).
    Such a shape is multiplied without scales, which follow in float32: the same numbers.
    """
    way, shape = row_scales(codes_OI.device, out), _shape(x, codes_OI, out)
    if way is not RowScales.NONE and shape not in NO_ROW_SCALES:
        try:
            return _by_rows(x, codes_OI, scale_O, out, way)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if not is_out_of_memory(error):
                NO_ROW_SCALES.add(shape)
    return _by_rows_afterwards(x, codes_OI, scale_O, out)


@cache
def row_scales(device: torch.device, out: torch.dtype) -> RowScales:
    """Return how this device's product with a scale for each row gives right numbers in `out`.

    Other GPUs than SM 9.0 have kernels of torch's own, which up to torch 2.13 write bfloat16 into a
    float16 result that has no bias, without an error (pytorch pull request 187569).
    """
    tokens, inputs, outputs = _TRIED
    x_TI, weight_OI = _counted(tokens, inputs, device), _counted(outputs, inputs, device)
    scale_T1 = (2.0 ** -(torch.arange(tokens, device=device) % 3))[:, None]
    scale_O = 2.0 ** -(torch.arange(outputs, device=device) % 2)
    expected_TO = x_TI @ weight_OI.t() * scale_T1 * scale_O
    x, codes_OI = Rounded(x_TI.to(FP8), scale_T1), weight_OI.to(FP8)
    for way in (RowScales.PLAIN, RowScales.WITH_BIAS):
        try:
            product_TO = _by_rows(x, codes_OI, scale_O, out, way).float()
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            continue
        if torch.allclose(product_TO, expected_TO, rtol=0.01):  # bfloat16 rounds to 2^-9
            return way
    return RowScales.NONE


def _counted(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return small whole numbers, which FP8 holds exactly: the product is exact in float32."""
    counted = torch.arange(rows * columns, device=device).view(rows, columns)
    return (counted * 7 % 11 % 5).float()


def _by_rows(
    x: Rounded, codes_OI: torch.Tensor, scale_O: torch.Tensor, out: torch.dtype, way: RowScales
) -> torch.Tensor:
    has_bias = way is RowScales.WITH_BIAS
    return torch._scaled_mm(
        x.codes,
        codes_OI.t(),
        scale_a=x.scale,
        scale_b=scale_O[None],
        bias=scale_O.new_zeros(len(scale_O), dtype=out) if has_bias else None,
        out_dtype=out,
        use_fast_accum=True,
    )


def _by_rows_afterwards(
    x: Rounded, codes_OI: torch.Tensor, scale_O: torch.Tensor, out: torch.dtype
) -> torch.Tensor:
    one = torch.ones((), device=codes_OI.device)
    product_TO = torch._scaled_mm(
        x.codes,
        codes_OI.t(),
        scale_a=one,
        scale_b=one,
        out_dtype=torch.float32,
        use_fast_accum=True,
    )
    return (product_TO * x.scale * scale_O).to(out)


def _shape(x: Rounded, codes_OI: torch.Tensor, out: torch.dtype) -> Shape:
    outputs, inputs = codes_OI.shape
    most_tokens = 1 << (len(x.codes) - 1).bit_length()
    return Shape(str(codes_OI.device), str(out), outputs, inputs, most_tokens)
