"""This file owns a linear of the packed model: dense, or with weight and input in FP8.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from nvembed_deploy.model.packed.kernels import Kernels


class Linear(Protocol):
    """A product with a constant weight."""

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return [T, O] in the format of `x_TI`."""
        ...


@dataclass(frozen=True)
class DenseLinear:
    """Weight and product in one format."""

    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None = None

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return [T, O]."""
        return functional.linear(x_TI, self.weight_OI, self.bias_O)


@dataclass(frozen=True)
class Fp8Linear:
    """E4M3 codes with a scale for each output channel; inputs are rounded with one for each token.

    The same numbers as an exported fp8 graph: with its codes, or with weights rounded to nearest.
    """

    codes_OI: torch.Tensor
    scale_O: torch.Tensor
    kernels: Kernels
    bias_O: torch.Tensor | None = None

    @classmethod
    def of(
        cls, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, kernels: Kernels
    ) -> Fp8Linear:
        """Round a weight, each output channel in its own range."""
        codes_OI, scale_O1 = kernels.to_fp8_rows(weight_OI)
        return cls(codes_OI, scale_O1[:, 0], kernels, bias_O)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return [T, O]; bfloat16 on a GPU, where the tensor cores do it."""
        codes_TI, scale_T1 = self.kernels.to_fp8_rows(x_TI)
        if codes_TI.is_cuda:
            product_TO = torch._scaled_mm(
                codes_TI,
                self.codes_OI.t(),
                scale_a=scale_T1,
                scale_b=self.scale_O[None],
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            ).to(x_TI.dtype)
        else:  # the same product by float32 arithmetic, to judge the rounding without a GPU
            product_TO = codes_TI.float() @ self.codes_OI.t().float()
            product_TO = (product_TO * scale_T1 * self.scale_O).to(x_TI.dtype)
        return product_TO if self.bias_O is None else product_TO + self.bias_O


@dataclass(frozen=True)
class JoinedLinear:
    """Linears of one input that are stored in different ways, their outputs one after another."""

    parts: tuple[Linear, ...]

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return [T, O]."""
        return torch.cat([part(x_TI) for part in self.parts], dim=-1)
