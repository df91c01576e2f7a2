"""This file owns quantising without calibration: every weight to its nearest code."""

from __future__ import annotations

from dataclasses import dataclass

from nvembed_deploy.export.formats import Formats
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.quantize import Quantized, round_nearest


@dataclass(frozen=True)
class NearestQuantizer:
    """Rounds each linear as it is asked for; see `weight_file.Quantizer`."""

    linears: LinearWeights
    formats: Formats

    def __call__(self, name: str) -> Quantized:
        """Return the quantised weight of the linear `name`."""
        weight_OI = self.linears.load(name)
        form = self.formats.of(name, weight_OI.shape[1])
        if form is None:
            raise ValueError(f"{name} is kept in 16 bit")
        return round_nearest(weight_OI, form)
