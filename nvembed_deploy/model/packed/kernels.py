"""This file owns the arithmetic between products: norms, rotation, gates, rounding to FP8.

Each is memory-bound and written plainly; `torch.compile` makes one kernel of each. The states and
what is computed here are float32, what products take is of the model's own format (the same split
as in exported graphs). Shapes: T tokens, D hidden, H heads, K head width, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch.nn import functional

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest value of E4M3 (OCP 8-bit floating point specification, section 5.1)."""
SMALLEST_ROW = 1e-6
"""A row of zeros has a range too."""


class Rounded(NamedTuple):
    """A product's input in FP8: E4M3 codes_TD, and a float32 scale_T1 for each row."""

    codes: torch.Tensor
    scale: torch.Tensor


Input = torch.Tensor | Rounded
"""What a product takes: rows in its own format, or rounded."""


def rms_norm(states_TD: torch.Tensor, gain_D: torch.Tensor, eps: float, out: torch.dtype) -> Input:
    """Return normal_TD in the format `out` (arXiv 1910.07467, equation 4), rounded if it is FP8."""
    return _to(functional.rms_norm(states_TD, gain_D.shape, gain_D, eps), out)


def add_rms_norm(
    states_TD: torch.Tensor,
    update_TD: torch.Tensor,
    gain_D: torch.Tensor,
    eps: float,
    out: torch.dtype,
) -> tuple[torch.Tensor, Input]:
    """Return the sum, float32, and its norm: the states are read and written once for both."""
    states_TD = states_TD + update_TD
    return states_TD, rms_norm(states_TD, gain_D, eps, out)


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


def silu_gate(gate_up_TF: torch.Tensor, out: torch.dtype) -> Input:
    """Return silu(gate) * up of the two halves, [T, F], rounded if `out` is FP8."""
    gate, up = gate_up_TF.chunk(2, dim=-1)
    return _to(functional.silu(gate) * up, out)


def gelu_gate(value_gate_TF: torch.Tensor) -> torch.Tensor:
    """Return value * gelu(gate) of the two halves, [T, F]; gelu with erf, as it was trained."""
    value, gate = value_gate_TF.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def to_fp8_rows(x_TD: torch.Tensor) -> Rounded:
    """Round each row to E4M3 in a range of its own."""
    wide_TD = x_TD.float()
    scale_T1 = wide_TD.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW) / FP8_MAX
    return Rounded((wide_TD / scale_T1).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale_T1)


def to_wide_fp8_rows(rest_TI: torch.Tensor, along_TK: torch.Tensor) -> Rounded:
    """Round what an input has beside a few directions, and its part along them to two numbers each.

    The codes are those of the rest, the first number, the second, the first again: see
    `export/principal.py`. K are the directions here.
    """
    codes_TJ, scale_T1 = to_fp8_rows(torch.cat([rest_TI, along_TK], -1))
    first_TK = codes_TJ[:, rest_TI.shape[-1] :]
    second_TK = (along_TK.float() / scale_T1 - first_TK.float()).to(FP8)
    return Rounded(torch.cat([codes_TJ, second_TK, first_TK], -1), scale_T1)


def _to(x_TD: torch.Tensor, out: torch.dtype) -> Input:
    return to_fp8_rows(x_TD) if out is FP8 else x_TD.to(out)


@dataclass(frozen=True)
class Kernels:
    """These functions, as written or compiled."""

    rms_norm: Callable[..., Input] = rms_norm
    add_rms_norm: Callable[..., tuple[torch.Tensor, Input]] = add_rms_norm
    layer_norm: Callable[..., torch.Tensor] = layer_norm
    rotate: Callable[..., torch.Tensor] = rotate
    silu_gate: Callable[..., Input] = silu_gate
    gelu_gate: Callable[..., torch.Tensor] = gelu_gate
    to_fp8_rows: Callable[..., Rounded] = to_fp8_rows
    to_wide_fp8_rows: Callable[..., Rounded] = to_wide_fp8_rows

    @classmethod
    def compiled(cls, backend: str | Callable[..., Any] = "inductor") -> Kernels:
        """Return them compiled: one for all numbers of tokens, so that shapes cost nothing."""
        names = cls.__dataclass_fields__
        return cls(**{name: _compiled(globals()[name], backend) for name in names})


def _compiled(kernel: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """Compile for any number of rows and fixed widths: of unknown ones no wide loads are made.

    A single row is compiled apart. Compilations belong to a function's code, of which each caller
    has a copy: those of several GPUs would count against one limit.
    """
    own = FunctionType(kernel.__code__.replace(), kernel.__globals__, kernel.__name__)
    compiled = torch.compile(own, dynamic=False, backend=backend)

    @wraps(kernel)
    def call(*args: Any) -> Any:  # noqa: ANN401 - the kernel's own
        rows = len(args[0])
        for x in args:
            if rows > 1 and isinstance(x, torch.Tensor) and x.dim() > 1 and len(x) == rows:
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(*args)

    return call
