"""This file owns the arithmetic between products: norms, rotation, gates, rounding to FP8.

Each is memory-bound and written plainly; `torch.compile` makes one kernel of each. The states and
what is computed here are float32, what products take is of the model's own format (the same split
as in exported graphs). Shapes: T tokens, D hidden, H heads, K head width, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest value of E4M3 (OCP 8-bit floating point specification, section 5.1)."""
SMALLEST_ROW = 1e-6
"""A row of zeros has a range too."""


def rms_norm(states_TD: torch.Tensor, gain_D: torch.Tensor, eps: float, out: torch.dtype) -> Any:  # noqa: ANN401
    """Return normal_TD in the format `out` (arXiv 1910.07467, equation 4)."""
    return functional.rms_norm(states_TD, gain_D.shape, gain_D, eps).to(out)


def layer_norm(
    states_TD: torch.Tensor, gain_D: torch.Tensor, bias_D: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return normal_TD, float32."""
    return functional.layer_norm(states_TD, gain_D.shape, gain_D, bias_D, eps)


def rotate(x_THK: torch.Tensor, cos_T1K: torch.Tensor, sin_T1K: torch.Tensor) -> torch.Tensor:
    """Turn each head's pairs (i, i + K/2) by the angle of its position (arXiv 2104.09864).

    `cos_T1K` and `sin_T1K` are float32 of half the head's width.
    """
    left, right = x_THK.float().chunk(2, dim=-1)
    turned = (left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K)
    return torch.cat(turned, dim=-1).to(x_THK.dtype)


def silu_gate(gate_up_TF: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up of the two halves, [T, F]."""
    gate, up = gate_up_TF.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_gate(value_gate_TF: torch.Tensor) -> torch.Tensor:
    """Return value * gelu(gate) of the two halves, [T, F]; gelu with erf, as it was trained."""
    value, gate = value_gate_TF.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def to_fp8_rows(x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to E4M3 in a range of its own: codes_TD and float32 scale_T1."""
    wide_TD = x_TD.float()
    scale_T1 = wide_TD.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW) / FP8_MAX
    return (wide_TD / scale_T1).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale_T1


@dataclass(frozen=True)
class Kernels:
    """These functions, as written or compiled."""

    rms_norm: Callable[..., torch.Tensor] = rms_norm
    layer_norm: Callable[..., torch.Tensor] = layer_norm
    rotate: Callable[..., torch.Tensor] = rotate
    silu_gate: Callable[..., torch.Tensor] = silu_gate
    gelu_gate: Callable[..., torch.Tensor] = gelu_gate
    to_fp8_rows: Callable[..., tuple[torch.Tensor, torch.Tensor]] = to_fp8_rows

    @classmethod
    def compiled(cls) -> Kernels:
        """Return them compiled: one for all numbers of tokens, so that shapes cost nothing."""
        names = cls.__dataclass_fields__
        return cls(**{n: torch.compile(globals()[n], dynamic=True) for n in names})
