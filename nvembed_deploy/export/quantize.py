"""This file owns rounding weights to 8 and 4 bits: scales, codes, and how they are packed.

Shapes: O outputs, I inputs, G blocks of inputs that share a scale (1 without blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from nvembed_deploy.export.formats import Code, LinearFormat

_STORED = {
    Code.INT8: np.dtype(np.int8),
    Code.INT4: np.dtype(np.int8),
    Code.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}
_SMALLEST_SCALE = 2.0**-20
"""Of float16, which scales are stored in: 4 bits of a subnormal are left. Only all-zero rows of a
weight come near it."""
_SEARCHED = {
    Code.INT8: (1.0,),
    Code.INT4: tuple(1 - 0.05 * step for step in range(10)),
    Code.FP8: tuple(2 ** (-step / 12) for step in range(12)),
}
"""Fractions of the full range that are tried: clipping a few weights can round all others finer.
For FP8, whose steps double with each power of 2, an octave is all there is to try."""


@dataclass(frozen=True)
class Quantized:
    """A quantised weight: `codes_OI` of the code's dtype and float32 `scale_OG` (exact in float16).

    The weight is codes * scale, each scale for I/G consecutive inputs.
    """

    codes_OI: np.ndarray
    scale_OG: np.ndarray
    input_scale: float | None = None
    """The inputs' one scale, where their range is static."""

    def dequantize(self) -> np.ndarray:
        """Return the weight it stands for, float32 [O, I]."""
        codes_OGB = _blocks(self.codes_OI.astype(np.float32), self.scale_OG.shape[1])
        weight: np.ndarray = (codes_OGB * self.scale_OG[..., None]).reshape(self.codes_OI.shape)
        return weight


def round_nearest(weight_OI: np.ndarray, form: LinearFormat) -> Quantized:
    """Round each weight to the nearest code, with the scales of `find_scales`."""
    scale_OG = find_scales(weight_OI, form)
    codes_OGB = to_codes(_blocks(weight_OI, scale_OG.shape[1]) / scale_OG[..., None], form.code)
    return Quantized(codes_OGB.reshape(weight_OI.shape), scale_OG)


def find_scales(weight_OI: np.ndarray, form: LinearFormat) -> np.ndarray:
    """Return float32 scale_OG (float16 values): of the tried ranges, the least squared error."""
    num_blocks = 1 if form.block is None else weight_OI.shape[1] // form.block
    blocks_OGB = _blocks(weight_OI, num_blocks)
    full_OG = np.abs(blocks_OGB).max(-1) / form.code.greatest
    best_OG, least_OG = _storable(full_OG), np.full_like(full_OG, np.inf)
    if len(_SEARCHED[form.code]) == 1:
        return best_OG
    for fraction in _SEARCHED[form.code]:
        scale_OG = _storable(full_OG * np.float32(fraction))
        wide_OG1 = scale_OG[..., None]
        rounded = to_codes(blocks_OGB / wide_OG1, form.code).astype(np.float32) * wide_OG1
        error_OG = ((rounded - blocks_OGB) ** 2).sum(-1)
        best_OG = np.where(error_OG < least_OG, scale_OG, best_OG)
        least_OG = np.minimum(error_OG, least_OG)
    return best_OG


def to_codes(scaled: np.ndarray, code: Code) -> np.ndarray:
    """Round weights divided by their scale to codes, ties to even, clipped to the code's range."""
    clipped = np.clip(scaled, -code.greatest, code.greatest)
    if code is not Code.FP8:
        clipped = np.rint(clipped)
    codes: np.ndarray = clipped.astype(_STORED[code])
    return codes


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Pack int8 codes of 4 bits, two a byte along the last axis, the first in the low half.

    Source: ONNX, docs/docsgen/source/technical/int4.md (raw data of INT4 tensors).
    """
    low, high = (codes[..., start::2].view(np.uint8) & 0xF for start in (0, 1))
    packed: np.ndarray = low | (high << 4)
    return packed


def _blocks(weight_OI: np.ndarray, num_blocks: int) -> np.ndarray:
    return weight_OI.reshape(len(weight_OI), num_blocks, -1)


def _storable(scale: np.ndarray) -> np.ndarray:
    """Round scales to float16 values, so that codes are made for the scale that is stored."""
    stored: np.ndarray = np.maximum(scale, _SMALLEST_SCALE).astype(np.float16)
    return stored.astype(np.float32)
