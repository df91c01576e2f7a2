"""This file owns a linear as the graph will have it: input rounded, weight rounded or not yet.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.export.formats import SMALLEST_ROW, Activations, LinearFormat
from nvembed_deploy.export.principal import round_wide
from nvembed_deploy.export.quantize import round_to_code
from nvembed_deploy.export.quantized import Quantized

_SHARING_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linears that read what another reads."""


class Observer(Protocol):
    """Sees what goes into linears and what comes out."""

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take a batch of inputs [.., I] of the linear `name`, and of its outputs [.., O]."""


class GraphLinear(nn.Module):
    """A linear of the model, with float weights until it is rounded."""

    def __init__(self, name: str, weight_OI: torch.Tensor, form: LinearFormat | None) -> None:
        """Take the weight in float32, and its format; None keeps it as it is."""
        super().__init__()
        self.name, self.form, self.weight_OI = name, form, weight_OI
        self.bias: torch.Tensor | None = None
        self.features: torch.Tensor | None = None
        self.observer: Observer | None = None
        self.input_scale: float | None = None
        self.basis_IK: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [.., I] through it, [.., O]."""
        if self.features is not None:
            x = (x.reshape(-1, len(self.features)) @ self.features).reshape(x.shape)
        rounded = x if self.form is None else self._rounded(x, self.form)
        y = functional.linear(rounded, self.weight_OI, self.bias)
        if self.observer is not None:
            self.observer.add(self.name, rounded, y)
        return y

    def _rounded(self, x: torch.Tensor, form: LinearFormat) -> torch.Tensor:
        if form.rank:  # before directions are found, nothing is as near as the input itself
            return x if self.basis_IK is None else round_wide(x, self.basis_IK, SMALLEST_ROW)
        if form.activations is Activations.ROW:
            return round_rows(x, form)
        if self.input_scale is not None:
            return round_to_code(x / self.input_scale, form.code) * self.input_scale
        return x

    def drop(self) -> None:
        """Free the weight: the linear is not run again."""
        self.weight_OI = torch.empty(0)

    def take(self, quantized: Quantized) -> None:
        """Be the rounded linear from now on."""
        self.input_scale = quantized.input_scale
        device = self.weight_OI.device
        self.weight_OI = torch.from_numpy(quantized.dequantize()).to(device)
        if quantized.basis_IK is not None:
            self.basis_IK = torch.from_numpy(quantized.basis_IK).to(device)


def round_rows(x: torch.Tensor, form: LinearFormat) -> torch.Tensor:
    """Round each row to codes in a range of its own, as the graph does (`linear.py`)."""
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW)
    greatest = form.code.greatest
    return round_to_code(x / largest * greatest, form.code) / greatest * largest


def first_of(name: str) -> str:
    """Return the linear whose input the one of this name shares; itself if it is the first."""
    for sharing, first in _SHARING_WITH.items():
        if name.endswith(sharing):
            return name.replace(sharing, first)
    return name


def is_shared(name: str) -> bool:
    """Tell whether others read what this linear reads."""
    return name.endswith(tuple(_SHARING_WITH.values()))
