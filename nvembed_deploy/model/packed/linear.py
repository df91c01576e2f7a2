"""This file owns a linear of the packed model: dense, or with weight and input in FP8.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from nvembed_deploy.model.packed.fp8_product import scaled_product
from nvembed_deploy.model.packed.kernels import FP8, Input, Kernels, Rounded

FP8_MULTIPLE = 16
"""What torch's FP8 product wants sizes to be multiples of (torch/_meta_registrations.py)."""


class Linear(Protocol):
    """A product with a constant weight."""

    @property
    def takes(self) -> torch.dtype:
        """The format its input is best made in: FP8 where it would round it anyway."""
        ...

    def __call__(self, x: Input) -> torch.Tensor:
        """Return [T, O] in the model's format, of x_TI or of its rounded form if it takes that."""
        ...


@dataclass(frozen=True)
class DenseLinear:
    """Weight and product in one format."""

    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None = None

    @property
    def takes(self) -> torch.dtype:
        """Its weight's format."""
        return self.weight_OI.dtype

    def __call__(self, x: Input) -> torch.Tensor:
        """Return [T, O]."""
        assert isinstance(x, torch.Tensor)
        return functional.linear(x, self.weight_OI, self.bias_O)


@dataclass(frozen=True)
class Fp8Linear:
    """E4M3 codes with a scale for each output channel; inputs are rounded with one for each token.

    The same numbers as an exported fp8 graph: with its codes, or with weights rounded to nearest.
    """

    codes_OI: torch.Tensor
    scale_O: torch.Tensor
    kernels: Kernels
    dtype: torch.dtype = torch.float32
    """Of what it returns."""
    bias_O: torch.Tensor | None = None

    @classmethod
    def of(
        cls, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, kernels: Kernels
    ) -> Fp8Linear:
        """Round a weight, each output channel in its own range."""
        codes_OI, scale_O1 = kernels.to_fp8_rows(weight_OI)
        return cls(codes_OI, scale_O1[:, 0], kernels, weight_OI.dtype, bias_O)

    def weight(self) -> torch.Tensor:
        """Return what its codes stand for, float32 [O, I]."""
        return self.codes_OI.float() * self.scale_O[:, None]

    def dense(self) -> DenseLinear:
        """Return the linear that it rounds the input of."""
        return DenseLinear(self.weight().to(self.dtype), self.bias_O)

    @property
    def takes(self) -> torch.dtype:
        """E4M3: made together with what is rounded, the rounding reads no memory."""
        return FP8

    def __call__(self, x: Input) -> torch.Tensor:
        """Return [T, O]; on a GPU the tensor cores do it."""
        rounded = x if isinstance(x, Rounded) else self.kernels.to_fp8_rows(x)
        if rounded.codes.is_cuda:
            product_TO = scaled_product(rounded, self.codes_OI, self.scale_O, self.dtype)
        else:  # the same product by float32 arithmetic, to judge the rounding without a GPU
            product_TO = rounded.codes.float() @ self.codes_OI.t().float()
            product_TO = (product_TO * rounded.scale * self.scale_O).to(self.dtype)
        return product_TO if self.bias_O is None else product_TO + self.bias_O


@dataclass(frozen=True)
class WideLinear:
    """An FP8 linear of which K directions of the input have three codes, after those of the rest.

    See `export/principal.py`.
    """

    linear: Fp8Linear
    basis_IK: torch.Tensor

    @property
    def takes(self) -> torch.dtype:
        """The model's format: that part is taken out before rounding."""
        return self.basis_IK.dtype

    def __call__(self, x: Input) -> torch.Tensor:
        """Return [T, O]."""
        assert isinstance(x, torch.Tensor)
        along_TK = x @ self.basis_IK
        rest_TI = torch.addmm(x, along_TK, self.basis_IK.t(), alpha=-1)
        return self.linear(self.linear.kernels.to_wide_fp8_rows(rest_TI, along_TK))

    def dense(self) -> DenseLinear:
        """Return the linear that it rounds the input of."""
        linear, basis_IK = self.linear, self.basis_IK.float()
        size, rank = basis_IK.shape
        rest_OI, first_OK, _, second_OK = torch.split(
            linear.weight(), [size, rank, rank, rank], dim=1
        )
        along_OK = first_OK + second_OK - rest_OI @ basis_IK
        return DenseLinear((rest_OI + along_OK @ basis_IK.t()).to(linear.dtype), linear.bias_O)


@dataclass(frozen=True)
class JoinedLinear:
    """Linears of one input that are stored in different ways, their outputs one after another."""

    parts: tuple[Linear, ...]
    dtype: torch.dtype

    @property
    def takes(self) -> torch.dtype:
        """The model's format, which every part takes."""
        return self.dtype

    def __call__(self, x: Input) -> torch.Tensor:
        """Return [T, O]."""
        return torch.cat([part(x) for part in self.parts], dim=-1)
