"""This file owns the static range of a linear's input: what was seen of it, and where to clip.

The range that keeps the largest value seen rounds all others coarsely for its sake. The one taken
is the one whose error in the linear's output is least, over ranges down to 1/64 of that, as if the
errors of different inputs were independent. Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.quantize import round_to_code

_ROWS_OF_A_BATCH = 32
"""Tokens kept of each batch, evenly spread: 512 of 256 texts, and 30 MB of the widest input."""
_FRACTIONS = tuple(2 ** (-step / 8) for step in range(49))


@dataclass
class SeenInputs:
    """What was seen of a linear's input: the largest value, some tokens, and how they count."""

    largest: float = 0.0
    rows_NI: list[torch.Tensor] = field(default_factory=list)
    weights_N1: list[torch.Tensor] = field(default_factory=list)

    def add(self, x_NI: torch.Tensor, weights_N1: torch.Tensor) -> None:
        """Add the inputs of a batch; an error in token n counts `weights_N1[n]` times."""
        self.largest = max(self.largest, float(x_NI.abs().max()))
        step = max(1, len(x_NI) // _ROWS_OF_A_BATCH)
        self.rows_NI.append(x_NI[::step].clone())
        self.weights_N1.append(weights_N1[::step].clone())

    def find_scale(self, weight_OI: torch.Tensor, code: Code) -> float:
        """Return the scale, a float16 value, with the least error in the linear's output."""
        rows_NI, weights_N1 = torch.cat(self.rows_NI), torch.cat(self.weights_N1)
        counts_I = weight_OI.square().sum(0)
        best, least = 0.0, float("inf")
        for fraction in _FRACTIONS:
            scale = _storable(self.largest * fraction / code.greatest)
            error_NI = round_to_code(rows_NI / scale, code).mul_(scale).sub_(rows_NI)
            error = float(error_NI.mul_(weights_N1).square_().sum(0) @ counts_I)
            if error < least:
                best, least = scale, error
        return best


def _storable(scale: float) -> float:
    return float(np.float16(max(scale, 2.0**-20)))
