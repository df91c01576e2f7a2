"""This file owns quantising without texts: every weight to its nearest code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from nvembed_deploy.export.calibration_record import LinearRange
from nvembed_deploy.export.formats import Activations, Formats
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.export.quantized import Quantized


@dataclass(frozen=True)
class NearestQuantizer:
    """Rounds each linear as it is asked for; see `weight_file.Quantizer`."""

    linears: LinearWeights
    formats: Formats
    ranges: dict[str, LinearRange] = field(default_factory=dict)
    """Found by an earlier calibration; needed where inputs have static ranges."""

    def __call__(self, name: str) -> Quantized:
        """Return the quantised weight of the linear `name`."""
        weight_OI = self.linears.load(name)
        form = self.formats.of(name, weight_OI.shape[1])
        if form is None:
            raise ValueError(f"{name} is not rounded")
        quantized = round_nearest(torch.from_numpy(weight_OI), form)
        if form.activations is not Activations.STATIC:
            return quantized
        return replace(quantized, input_scale=self.ranges[name].scale)

    def range_of(self, name: str) -> LinearRange:
        """Return what the earlier calibration saw of the linear `name`."""
        return self.ranges[name]
