"""This file owns putting weights on the device in the form that the packed model computes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nvembed_deploy.model.packed.kernels import FP8, Kernels
from nvembed_deploy.model.packed.linear import (
    FP8_MULTIPLE,
    DenseLinear,
    Fp8Linear,
    JoinedLinear,
    Linear,
    WideLinear,
)
from nvembed_deploy.model.packed.reader import Codes, CodesReader, Reader, no_codes


@dataclass(frozen=True)
class Loader:
    """Reads tensors one at a time; nothing is held twice.

    Attributes:
        read: where the tensors come from.
        dtype: of products, and of what is stored for them.
        device: where they go.
        kernels: the arithmetic between products.
        is_fp8: round linears to FP8.
        codes: where linears come from that are in FP8 already.
    """

    read: Reader
    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    is_fp8: bool = False
    codes: CodesReader = no_codes

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return one tensor. Norms stay float32: they are small, and their inputs are float32."""
        return self._place(self.read(name), dtype)

    def linear(self, *names: str, has_bias: bool = False, is_dense: bool = False) -> Linear:
        """Return linears that share an input as one, their outputs one after another.

        `is_dense`: not in FP8, of a linear that few rows go through, which rounding does not speed
        up. Those of sizes that FP8 products do not take are dense too.
        """
        bias_O = self.tensor(f"{names[0]}.bias", self.dtype) if has_bias else None
        found = [self.codes(name) for name in names]
        stored = [codes for codes in found if codes is not None]
        basis = next((codes.basis_IK for codes in stored if codes.basis_IK is not None), None)
        if stored and len(stored) == len(names):
            return self._coded(stored, basis, bias_O, is_dense=is_dense)
        if stored:
            parts = (
                self.linear(name) if codes is None else self._coded([codes], basis)
                for name, codes in zip(names, found, strict=True)
            )
            return JoinedLinear(tuple(parts), self.dtype)
        weights = [self._place(self.read(f"{name}.weight"), self.dtype) for name in names]
        weight_OI = weights[0] if len(weights) == 1 else torch.cat(weights)
        if self.is_fp8 and not is_dense and _fits_fp8(weight_OI):
            return Fp8Linear.of(weight_OI, bias_O, self.kernels)
        return DenseLinear(weight_OI, bias_O)

    def _coded(
        self,
        stored: Sequence[Codes],
        basis: np.ndarray | None,
        bias_O: torch.Tensor | None = None,
        *,
        is_dense: bool = False,
    ) -> Linear:
        """Return linears in FP8 as one; each is turned on the device, which is faster at it."""
        parts = [torch.from_numpy(codes.codes_IO).to(self.device).t() for codes in stored]
        codes_OI = torch.cat([part.contiguous() for part in parts]).view(FP8)
        scale_O = torch.cat([torch.from_numpy(codes.scale_O).to(self.device) for codes in stored])
        coded = Fp8Linear(codes_OI, scale_O, self.kernels, self.dtype, bias_O)
        linear = coded if basis is None else WideLinear(coded, self._place(basis, self.dtype))
        return linear.dense() if is_dense or not _fits_fp8(codes_OI) else linear

    def _place(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.device).to(dtype, copy=self.device.type == "cpu")


def _fits_fp8(weight_OI: torch.Tensor) -> bool:
    return all(size % FP8_MULTIPLE == 0 for size in weight_OI.shape)
