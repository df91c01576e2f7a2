"""This file owns what a quantised weight is: codes and scales, and how 4-bit codes are packed.

Shapes: O outputs, I inputs, G blocks of inputs that share a scale (1 without blocks), K principal
directions of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quantized:
    """A quantised weight: `codes_OI` of the code's dtype and float32 `scale_OG` (exact in float16).

    The weight is codes * scale, each scale for I/G consecutive inputs.
    """

    codes_OI: np.ndarray
    scale_OG: np.ndarray
    input_scale: float | None = None
    """The inputs' one scale, where their range is static."""
    basis_IK: np.ndarray | None = None
    """Directions of the input that have codes of their own, after those of the rest: the codes are
    then of `formats.WIDER` * K inputs more. Float32 of float16 values."""

    def dequantize(self) -> np.ndarray:
        """Return the weight it stands for, float32, of the codes' shape."""
        codes_OGB = self.codes_OI.astype(np.float32).reshape(*self.scale_OG.shape, -1)
        weight: np.ndarray = (codes_OGB * self.scale_OG[..., None]).reshape(self.codes_OI.shape)
        return weight


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Pack int8 codes of 4 bits, two a byte along the last axis, the first in the low half.

    Source: ONNX, docs/docsgen/source/technical/int4.md (raw data of INT4 tensors).
    """
    low, high = (codes[..., start::2].view(np.uint8) & 0xF for start in (0, 1))
    packed: np.ndarray = low | (high << 4)
    return packed
