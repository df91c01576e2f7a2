"""This file owns rounding a weight so that later inputs make up for the rounding of earlier ones.

One input (a column) at a time is rounded, the most used first; what it changes in the outputs, on
the calibration texts, is spread over the inputs not yet rounded. Source: arXiv 2210.17323 (GPTQ),
section 3, with the inputs ordered by their energy. Shapes: O outputs, I inputs, G blocks of inputs.
"""

from __future__ import annotations

import numpy as np
import torch

from nvembed_deploy.export.formats import Code, LinearFormat
from nvembed_deploy.export.quantize import STORED, find_scales, round_to_code, to_codes
from nvembed_deploy.export.quantized import Quantized

_DAMPING = 0.01
"""Added to the diagonal, as a fraction of its mean: GPTQ's own, against inputs seldom used."""
_COLUMNS = 128
"""Columns rounded before the rest of the weight is updated: one product instead of 128."""
_ROWS = 512
"""Rows (or columns) of an energy that are moved or inverted at once."""


def compensate(
    weight_OI: torch.Tensor,
    energy_II: torch.Tensor,
    form: LinearFormat,
    scale_OG: torch.Tensor | None = None,
) -> Quantized:
    """Quantise a weight for inputs x whose sum of x x^T over calibration tokens is `energy_II`.

    Args:
        weight_OI: float32.
        energy_II: float32, symmetric. It is used up: its memory holds what is computed from it.
        form: the code and the blocks.
        scale_OG: float32 of float16 values; None: those of `find_scales`.
    """
    scale_OG = find_scales(weight_OI, form) if scale_OG is None else scale_OG
    order_I = energy_II.diagonal().argsort(descending=True)
    lower_II = _reversed_factor(energy_II, order_I)
    left_OI = weight_OI[:, order_I]
    codes_OI = np.empty(weight_OI.shape, STORED[form.code])
    group_I = order_I // (len(order_I) // scale_OG.shape[1])
    for start in range(0, len(order_I), _COLUMNS):
        stop = min(start + _COLUMNS, len(order_I))
        part_OC = left_OI[:, start:stop]
        scale_OC = scale_OG[:, group_I[start:stop]]
        factor_CC, factor_CI = _rows(lower_II, start, stop)
        errors_OC = _round_columns(part_OC, scale_OC, factor_CC, form.code)
        codes_OI[:, order_I[start:stop].cpu().numpy()] = to_codes(part_OC / scale_OC, form.code)
        left_OI[:, stop:].addmm_(errors_OC, factor_CI, alpha=-1)
    return Quantized(codes_OI, scale_OG.cpu().numpy())


def _reversed_factor(energy_II: torch.Tensor, order_I: torch.Tensor) -> torch.Tensor:
    """Return upper U, axes reversed; U^T U is the inverse of the damped energy in this order.

    With R upper and R R^T the energy, U is the inverse of R; R is the Cholesky factor of the energy
    with rows and columns reversed. All of it in the energy's own memory: the largest of NV-Embed,
    of its pooler's last linear, is 1 GB.
    """
    damping = _DAMPING * energy_II.diagonal().mean() + torch.finfo(torch.float32).tiny
    _permute(energy_II, order_I.flip(0))
    energy_II.diagonal().add_(damping)
    torch.linalg.cholesky(energy_II, out=energy_II)
    return _invert_lower(energy_II)


def _permute(matrix_II: torch.Tensor, order_I: torch.Tensor) -> None:
    """Put a matrix's rows and columns into this order, in place."""
    for part_IC in torch.split(matrix_II, _ROWS, dim=1):
        part_IC.copy_(part_IC[order_I])
    for part_CI in torch.split(matrix_II, _ROWS):
        part_CI.copy_(part_CI[:, order_I])


def _rows(lower_II: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return U[start:stop, start:stop] and U[start:stop, stop:] of U reversed."""
    size = len(lower_II)
    reversed_CI = lower_II[size - stop : size - start, : size - start].flip(0, 1)
    return reversed_CI[:, : stop - start], reversed_CI[:, stop - start :]


def _invert_lower(lower_II: torch.Tensor) -> torch.Tensor:
    """Invert a lower triangular matrix in place, from its last rows up."""
    size = len(lower_II)
    for start in reversed(range(0, size, _ROWS)):
        part, below = slice(start, min(start + _ROWS, size)), slice(min(start + _ROWS, size), size)
        block = lower_II[part, part]
        one = torch.eye(len(block), device=block.device)
        inverse = torch.linalg.solve_triangular(block, one, upper=False)
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
