"""This file owns rounding weights to 8 and 4 bits: scales and codes.

Shapes: O outputs, I inputs, G blocks of inputs that share a scale (1 without blocks).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from nvembed_deploy.export.formats import Code, LinearFormat
from nvembed_deploy.export.quantized import Quantized

STORED = {
    Code.INT8: np.dtype(np.int8),
    Code.INT4: np.dtype(np.int8),
    Code.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}
"""What codes are kept in; 4-bit ones lie one in a byte until they are written."""
SMALLEST_SCALE = 2.0**-20
"""Of float16, which scales are stored in: 4 bits of a subnormal are left. Only all-zero rows of a
weight come near it."""
_SEARCHED = {
    Code.INT8: (1.0,),
    Code.INT4: tuple(1 - 0.05 * step for step in range(10)),
    Code.FP8: tuple(2 ** (-step / 12) for step in range(12)),
}
"""Fractions of the full range that are tried: clipping a few weights can round all others finer.
For FP8, whose steps double with each power of 2, an octave is all there is to try."""
_EXPONENT = 0x7F800000
"""Bits of a float32 that hold its power of 2."""
_SEEN, _LARGEST = 2048, 64
"""Weights of a row, evenly spread, whose error stands for all where there are more; and how many of
its largest are added, which are what clipping costs. A third of the time of 4,096."""

_ROWS = 4096
"""Rows looked at together: of NV-Embed's widest linear, of 32,768, it takes 0.2 GiB, not 1.3."""


def round_nearest(weight_OI: torch.Tensor, form: LinearFormat) -> Quantized:
    """Round each weight to the nearest code, with the scales of `find_scales`."""
    scale_OG = find_scales(weight_OI, form)
    scaled_OGB = weight_OI.reshape(*scale_OG.shape, -1) / scale_OG[..., None]
    codes_OI = to_codes(scaled_OGB, form.code).reshape(weight_OI.shape)
    return Quantized(codes_OI, scale_OG.cpu().numpy())


def find_scales(weight_OI: torch.Tensor, form: LinearFormat) -> torch.Tensor:
    """Return float32 scale_OG (float16 values): of the tried ranges, the least squared error."""
    return torch.cat([_find_scales(rows_RI, form) for rows_RI in torch.split(weight_OI, _ROWS)])


def _find_scales(weight_OI: torch.Tensor, form: LinearFormat) -> torch.Tensor:
    num_blocks = 1 if form.block is None else weight_OI.shape[1] // form.block
    blocks_OGB = weight_OI.reshape(len(weight_OI), num_blocks, -1)
    full_OG = torch.maximum(blocks_OGB.amax(-1), -blocks_OGB.amin(-1)) / form.code.greatest
    best_OG, least_OG = _storable(full_OG), torch.full_like(full_OG, torch.inf)
    if len(_SEARCHED[form.code]) == 1:
        return best_OG
    seen_OGB, counts_B = _seen(blocks_OGB)
    for fraction in _SEARCHED[form.code]:
        scale_OG = _storable(full_OG * fraction)
        wide_OG1 = scale_OG[..., None]
        error = round_to_code(seen_OGB / wide_OG1, form.code).mul_(wide_OG1).sub_(seen_OGB)
        error_OG = error.square_() @ counts_B
        best_OG = torch.where(error_OG < least_OG, scale_OG, best_OG)
        least_OG = torch.minimum(error_OG, least_OG)
    return best_OG


def round_to_code(scaled: torch.Tensor, code: Code) -> torch.Tensor:
    """Round weights divided by their scale to codes, ties to even, clipped to the code's range.

    Returns:
        float32, whatever the code.
    """
    clipped = scaled.clamp(-code.greatest, code.greatest)
    return _round_to_e4m3(clipped) if code is Code.FP8 else clipped.round_()


def _round_to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Round in place to 3 bits after the leading one, and to multiples of 2^-9 below 2^-6.

    Adding 1.5 * 2^20 times a number's power of 2 leaves a float32 no other bits to keep; to the bit
    what torch's conversion to E4M3 and back gives, in a quarter of its time.
    """
    power = (x.view(torch.int32) & _EXPONENT).view(torch.float32).clamp_(min=2.0**-6)
    magic = power.mul_(1.5 * 2**20)
    return x.add_(magic).sub_(magic)


def to_codes(scaled: torch.Tensor, code: Code) -> np.ndarray:
    """Return `round_to_code` in the code's own dtype."""
    clipped = scaled.clamp(-code.greatest, code.greatest)
    if code is Code.FP8:
        codes = clipped.to(torch.float8_e4m3fn).view(torch.uint8).cpu().numpy()
    else:
        codes = clipped.round_().to(torch.int8).cpu().numpy()
    stored: np.ndarray = codes.view(STORED[code])
    return stored


def _seen(blocks_OGB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of each block that are looked at, and how many each stands for."""
    step = blocks_OGB.shape[-1] // _SEEN
    if step <= 1:
        return blocks_OGB, blocks_OGB.new_ones(blocks_OGB.shape[-1])
    spread = blocks_OGB[..., ::step]
    order = blocks_OGB.abs().topk(_LARGEST, sorted=False).indices
    counts_B = blocks_OGB.new_ones(spread.shape[-1] + _LARGEST)
    counts_B[: spread.shape[-1]] = step
    return torch.cat([spread, blocks_OGB.gather(-1, order)], -1), counts_B


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to float16 values, so that codes are made for the scale that is stored."""
    return scale.clamp(min=SMALLEST_SCALE).half().float()
