"""This file owns rounding a weight so that later inputs make up for the rounding of earlier ones.

One input (a column) at a time is rounded, the most used first; what it changes in the outputs, on
the calibration texts, is spread over the inputs not yet rounded. Source: arXiv 2210.17323 (GPTQ),
section 3, with the inputs ordered by their energy. Shapes: O outputs, I inputs, G blocks of inputs.
"""

from __future__ import annotations

import numpy as np
import torch

from nvembed_deploy.export.formats import Code, LinearFormat
from nvembed_deploy.export.quantize import find_scales, round_to_code, to_codes
from nvembed_deploy.export.quantized import Quantized

_DAMPING = 0.01
"""Added to the diagonal, as a fraction of its mean: GPTQ's own, against inputs seldom used."""
_COLUMNS = 128
"""Columns rounded before the rest of the weight is updated: one product instead of 128."""
_ROWS = 512
"""Rows of an energy that are copied or inverted at once."""


def compensate(weight_OI: np.ndarray, energy_II: torch.Tensor, form: LinearFormat) -> Quantized:
    """Quantise a weight for inputs x whose sum of x x^T over calibration tokens is `energy_II`.

    Args:
        weight_OI: float32.
        energy_II: float32, symmetric.
        form: the code and the blocks.
    """
    scale_OG = find_scales(weight_OI, form)
    order_I = energy_II.diagonal().argsort(descending=True)
    factor_II = _inverse_factor(energy_II, order_I)
    del energy_II  # as large as the weight and more, and often nobody else's
    left_OI = torch.from_numpy(weight_OI)[:, order_I]
    column_scale_OI = torch.from_numpy(scale_OG)[:, order_I // (len(order_I) // scale_OG.shape[1])]
    scaled_OI = torch.empty_like(left_OI)
    for start in range(0, left_OI.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        errors = _round_columns(
            left_OI[:, part], column_scale_OI[:, part], factor_II[part, part], form.code
        )
        scaled_OI[:, part] = left_OI[:, part] / column_scale_OI[:, part]
        left_OI[:, start + _COLUMNS :] -= errors @ factor_II[part, start + _COLUMNS :]
    codes_OI = to_codes(scaled_OI[:, order_I.argsort()], form.code)
    return Quantized(codes_OI, scale_OG)


def _inverse_factor(energy_II: torch.Tensor, order_I: torch.Tensor) -> torch.Tensor:
    """Return upper U with U^T U the inverse of the damped energy, its inputs in this order.

    With R upper and R R^T the energy, U is the inverse of R; R is the Cholesky factor of the energy
    with rows and columns reversed. Never more than two matrices of this size beside the energy: a
    7B model's largest is 0.8 GB.
    """
    damping = _DAMPING * energy_II.diagonal().mean() + torch.finfo(torch.float32).tiny
    reversed_II = torch.empty_like(energy_II)
    backwards_I = order_I.flip(0)
    for start in range(0, len(order_I), _ROWS):
        rows = slice(start, start + _ROWS)
        reversed_II[rows] = energy_II[backwards_I[rows]][:, backwards_I]
    reversed_II.diagonal().add_(damping)
    torch.linalg.cholesky(reversed_II, out=reversed_II)
    return _invert_lower(reversed_II).flip(0, 1)


def _invert_lower(lower_II: torch.Tensor) -> torch.Tensor:
    """Invert a lower triangular matrix in place, from its last rows up."""
    size = len(lower_II)
    for start in reversed(range(0, size, _ROWS)):
        part, below = slice(start, min(start + _ROWS, size)), slice(min(start + _ROWS, size), size)
        block = lower_II[part, part]
        inverse = torch.linalg.solve_triangular(block, torch.eye(len(block)), upper=False)
        lower_II[part, part] = inverse
        lower_II[below, part] = -(lower_II[below, below] @ (lower_II[below, part] @ inverse))
    return lower_II


def _round_columns(
    left_OC: torch.Tensor, scale_OC: torch.Tensor, factor_CC: torch.Tensor, code: Code
) -> torch.Tensor:
    """Round a few columns in place, each making up for those before; return their scaled errors."""
    errors_OC = torch.empty_like(left_OC)
    for column in range(left_OC.shape[1]):
        scale_O, wanted_O = scale_OC[:, column], left_OC[:, column]
        rounded_O = round_to_code(wanted_O / scale_O, code) * scale_O
        error_O = (wanted_O - rounded_O) / factor_CC[column, column]
        errors_OC[:, column] = error_O
        left_OC[:, column] = rounded_O
        left_OC[:, column + 1 :] -= error_O[:, None] * factor_CC[column, column + 1 :]
    return errors_OC
