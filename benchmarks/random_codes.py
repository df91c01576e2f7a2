"""This file owns a random checkpoint's linears as a default fp8 export stores them.

The directions that are rounded twice are random too: the product is exact along any, and as fast.
Shapes: O outputs, I inputs, K directions, G scales of an output (1), J = I + 3 K.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from nvembed_deploy.export.formats import Formats
from nvembed_deploy.export.graph_linear import first_of
from nvembed_deploy.export.principal import paired_codes, widen_weight
from nvembed_deploy.export.quantize import to_codes
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.model.packed.reader import Codes, Reader


@dataclass(frozen=True)
class RandomCodes:
    """Rounds each linear as it is asked for, to nearest; see `reader.CodesReader`."""

    read: Reader
    formats: Formats
    device: torch.device
    """Rounds there, which is faster."""

    @classmethod
    def of_default_export(cls, read: Reader, device: torch.device) -> RandomCodes:
        """Take the weights, and what `--precision fp8` gives."""
        return cls(read, load_recipe(None, {"precision": "fp8"}).formats, device)

    def __call__(self, name: str) -> Codes | None:
        """Return a linear in FP8, with the basis if it is the first that reads its input."""
        array = np.ascontiguousarray(self.read(f"{name}.weight"))
        weight_OI = torch.from_numpy(array).to(self.device)
        num_inputs = weight_OI.shape[1]
        form = self.formats.of(name, num_inputs)
        if form is None:
            return None
        basis_IK = random_basis(first_of(name), num_inputs, form.rank).to(self.device)
        wide = widen_weight(weight_OI, basis_IK)
        largest_O1 = wide.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny)
        scale_OG = (largest_O1 / form.code.greatest).half().float()
        rest = to_codes(wide[:, :num_inputs] / scale_OG, form.code)
        along = paired_codes(wide[:, num_inputs:], scale_OG)
        codes_OJ = np.concatenate([rest, along], 1).view(np.uint8)
        basis = basis_IK.cpu().numpy() if first_of(name) == name else None
        return Codes(codes_OJ.T, scale_OG[:, 0].cpu().numpy(), basis)


def random_basis(name: str, num_inputs: int, rank: int) -> torch.Tensor:
    """Return an orthonormal basis [I, K], float32 of float16 values, the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    basis_IK: torch.Tensor = torch.randn(num_inputs, rank, generator=generator)
    return torch.linalg.qr(basis_IK).Q.half().float()
