"""This file owns putting weights on the device in the form that the packed model computes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.linear import DenseLinear, Fp8Linear, Linear
from nvembed_deploy.model.packed.reader import Reader


@dataclass(frozen=True)
class Loader:
    """Reads tensors one at a time; nothing is held twice.

    Attributes:
        read: where the tensors come from.
        dtype: of products, and of what is stored for them.
        device: where they go.
        kernels: the arithmetic between products.
        is_fp8: round linears to FP8.
    """

    read: Reader
    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    is_fp8: bool = False

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return one tensor. Norms stay float32: they are small, and their inputs are float32."""
        return self._place(self.read(name), dtype)

    def linear(self, *names: str, has_bias: bool = False) -> Linear:
        """Return linears that share an input as one, their outputs one after another."""
        weights = [self._place(self.read(f"{name}.weight"), self.dtype) for name in names]
        weight_OI = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias_O = self.tensor(f"{names[0]}.bias", self.dtype) if has_bias else None
        if self.is_fp8:
            return Fp8Linear.of(weight_OI, bias_O, self.kernels)
        return DenseLinear(weight_OI, bias_O)

    def _place(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.device).to(dtype, copy=self.device.type == "cpu")
