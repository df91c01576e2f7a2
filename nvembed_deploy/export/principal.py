"""This file owns the directions of a linear's input that are rounded to two FP8 numbers each.

Token states have most of their energy in a few directions, the same for all tokens. FP8 rounds in
proportion to what it rounds, so these directions cause most of the error. With P [I, K] an
orthonormal basis of them, x W^T = (x - x P P^T) W^T + (x P) (W P)^T, for any P. The second product
is of few inputs: z = x P and V = W P are kept as sums of two numbers, the second what the first
leaves, and z V^T is z1 V1^T + z2 V1^T + z1 V2^T. These are 3 K more inputs of the same FP8 product:
nothing is added to its outputs, and no weight is in 16 bit but P.
Sources: arXiv 2411.05007 (SVDQuant) for a low-rank part beside the rounded one, arXiv 2412.14363
(ResQ) for choosing it by the energy of the input; two numbers in one product are this project's.
Shapes: N tokens, O outputs, I inputs, K directions, G blocks of inputs that share a scale (1 here).
"""

from __future__ import annotations

import numpy as np
import torch

from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.quantize import round_to_code, to_codes

_SEED, _ROUNDS, _MORE = 0, 12, 8
"""Of the subspace iteration: energies fall fast, and what it mixes up is of nearly equal size."""
_UNSURE, _UNSURE_ALONG = 1e-4, 1e-6
"""What float32 loses, of the energy taken out of an input, and of all of it along the basis: where
massive tokens decide, the rest is the small difference of large sums."""


def find_basis(energy_II: torch.Tensor, rank: int) -> torch.Tensor:
    """Return basis_IK, float32 of float16 values: where inputs with this x^T x have most energy.

    The same for the same energy. By subspace iteration (arXiv 0909.4061, algorithm 4.4): the
    eigenvectors of a 14,336-wide energy would take half an hour.
    """
    generator = torch.Generator().manual_seed(_SEED)
    wide = min(rank + _MORE, len(energy_II))
    start_IK: torch.Tensor = torch.randn(len(energy_II), wide, generator=generator)
    basis_IK = start_IK.to(energy_II.device)
    for _ in range(_ROUNDS):
        basis_IK = torch.linalg.qr(energy_II @ basis_IK).Q
    turn_KK: torch.Tensor = torch.linalg.eigh(basis_IK.T @ energy_II @ basis_IK).eigenvectors
    return (basis_IK @ turn_KK[:, -rank:]).half().float()


def take_out(energy_II: torch.Tensor, basis_IK: torch.Tensor) -> None:
    """Make the x^T x of inputs that of their rest beside the basis, x - x P P^T, in place.

    What float32 may have lost is added, as rounding adds its damping: else there could be inputs of
    less than no energy.
    """
    before_I = energy_II.diagonal().clone()
    along_IK = energy_II @ basis_IK
    along_KK = basis_IK.T @ along_IK
    energy_II.addmm_(along_IK, basis_IK.T, alpha=-1).addmm_(basis_IK, along_IK.T, alpha=-1)
    energy_II.addmm_(basis_IK @ along_KK, basis_IK.T)
    energy_II.diagonal().add_(_UNSURE * (before_I - energy_II.diagonal()).clamp(min=0))
    energy_II.addmm_(basis_IK, basis_IK.T, alpha=_UNSURE_ALONG * float(along_KK.trace()))


def widen_weight(weight_OI: torch.Tensor, basis_IK: torch.Tensor) -> torch.Tensor:
    """Return the weight for the rest of the input and, after it, for its part: [O, I + K].

    The first has nothing along the basis, so that no code is spent on it. In float16 a basis is not
    quite orthonormal; the second makes up for that.
    """
    num_inputs, rank = basis_IK.shape
    wide_OJ = weight_OI.new_empty(len(weight_OI), num_inputs + rank)
    along_OK = weight_OI @ basis_IK
    torch.addmm(weight_OI, along_OK, basis_IK.T, alpha=-1, out=wide_OJ[:, :num_inputs])
    wide_OJ[:, num_inputs:] = 2 * along_OK - along_OK @ (basis_IK.T @ basis_IK)
    return wide_OJ


def paired_codes(weight_OK: torch.Tensor, scale_OG: torch.Tensor) -> np.ndarray:
    """Return the codes of a weight on a basis, for inputs that `round_wide` has: [O, 3 K]."""
    scaled_OK = weight_OK / scale_OG
    first_OK = round_to_code(scaled_OK, Code.FP8)
    second_OK = scaled_OK - first_OK
    return to_codes(torch.cat([first_OK, first_OK, second_OK], 1), Code.FP8)


def round_wide(x: torch.Tensor, basis_IK: torch.Tensor, smallest: float) -> torch.Tensor:
    """Return rows [.., I] as the product has them, rounded, [.., I + 3 K]: see `linear.py`.

    The rest, z1, z2 and z1 again, each row in a range of its own, which is at least `smallest`.
    """
    along = x @ basis_IK
    parts = torch.cat([x - along @ basis_IK.T, along], -1)
    largest = parts.abs().amax(-1, keepdim=True).clamp(min=smallest)
    scaled = parts / largest * Code.FP8.greatest
    first = scaled[..., x.shape[-1] :]
    second = first - round_to_code(first, Code.FP8)
    wide = torch.cat([scaled, second, first], -1)
    return round_to_code(wide, Code.FP8) / Code.FP8.greatest * largest
