"""This file owns the energy of a linear's inputs: the sum of x x^T over tokens.

It is symmetric, so only what lies on and below the diagonal is added up, panel by panel: of 14,336
inputs 1.35 s instead of 2.37 for 512 tokens on one core. Shapes: N tokens, I inputs.
"""

from __future__ import annotations

import torch

_PANEL = 2048
"""Columns added to at once: narrower panels leave less to add, and products get slower."""


def add_energy(energy_II: torch.Tensor, x_NI: torch.Tensor) -> None:
    """Add x^T x to a sum, on and below its diagonal; what is above is not to be read."""
    for start in range(0, len(energy_II), _PANEL):
        panel = slice(start, start + _PANEL)
        energy_II[start:, panel].addmm_(x_NI[:, start:].T, x_NI[:, panel])


def complete_energy(energy_II: torch.Tensor) -> None:
    """Write what is below the diagonal above it, in place."""
    for start in range(0, len(energy_II), _PANEL):
        panel, rest = slice(start, start + _PANEL), slice(start + _PANEL, None)
        energy_II[panel, rest].copy_(energy_II[rest, panel].T)
