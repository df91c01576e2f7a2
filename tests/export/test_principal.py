"""Tests of nvembed_deploy/export/principal.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.export.formats import Activations, Code, LinearFormat
from nvembed_deploy.export.graph_linear import round_rows
from nvembed_deploy.export.principal import (
    find_basis,
    paired_codes,
    round_wide,
    take_out,
    widen_weight,
)
from nvembed_deploy.export.quantize import find_scales, round_nearest, to_codes
from nvembed_deploy.export.quantized import Quantized
from tests import factories
from tests.export.test_compensate import correlated_inputs

WEIGHT = torch.from_numpy(factories.values("weight", (48, 160)))
RANK = 24


def rest_of(x_NI: torch.Tensor, basis_IK: torch.Tensor) -> torch.Tensor:
    """Return what is left of rows [.., I] without their part along the basis."""
    return x_NI - (x_NI @ basis_IK) @ basis_IK.T


def energy_of(x_NI: torch.Tensor) -> torch.Tensor:
    return x_NI.T @ x_NI


def test_the_basis_holds_what_inputs_share() -> None:
    x_NI = correlated_inputs()
    basis_IK = find_basis(energy_of(x_NI), RANK)
    assert basis_IK.shape == (160, RANK)
    torch.testing.assert_close(basis_IK.T @ basis_IK, torch.eye(RANK), atol=1e-3, rtol=0)
    assert rest_of(x_NI, basis_IK).norm() < 0.02 * x_NI.norm()  # the noise


def test_a_basis_depends_on_nothing_but_its_energy() -> None:
    energy_II = energy_of(correlated_inputs())
    before = torch.random.get_rng_state()
    first = find_basis(energy_II, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(find_basis(energy_II, 8), first)


def test_a_basis_in_float16_is_stored_as_it_is() -> None:
    basis_IK = find_basis(energy_of(correlated_inputs()), 8)
    assert torch.equal(basis_IK.half().float(), basis_IK)


@pytest.mark.parametrize("scale", [1.0, 1.01, 0.5], ids=["orthonormal", "nearly", "far from it"])
def test_the_two_products_are_the_linear_before_rounding(scale: float) -> None:
    x_NI = correlated_inputs(50).double()
    basis_IK = find_basis(energy_of(correlated_inputs()), 8).double() * scale
    rest_OI, weight_OK = widen_weight(WEIGHT.double(), basis_IK).split([160, 8], 1)
    got = rest_of(x_NI, basis_IK) @ rest_OI.T + (x_NI @ basis_IK) @ weight_OK.T
    torch.testing.assert_close(got, x_NI @ WEIGHT.double().T, rtol=1e-9, atol=1e-9)


def test_taking_out_leaves_the_energy_of_what_is_left() -> None:
    x_NI = correlated_inputs()
    energy_II, basis_IK = energy_of(x_NI), find_basis(energy_of(x_NI), 8)
    largest = energy_II.abs().max()
    take_out(energy_II, basis_IK)
    expected_II = energy_of(rest_of(x_NI.double(), basis_IK.double())).float()
    assert (energy_II - expected_II).abs().max() < 2e-4 * largest


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
def test_what_is_left_of_massive_inputs_has_a_root(size: float) -> None:
    """In float32 their energy hides all others': what is left may come out below nothing."""
    x_NI = correlated_inputs()
    x_NI[:4] *= size
    energy_II = energy_of(x_NI)
    take_out(energy_II, find_basis(energy_II, 8))
    energy_II.diagonal().add_(0.01 * energy_II.diagonal().mean())
    assert torch.linalg.cholesky_ex(energy_II).info == 0


def test_inputs_beside_massive_ones_keep_their_sizes() -> None:
    x_NI = correlated_inputs()
    x_NI[:4] *= 100
    energy_II, basis_IK = energy_of(x_NI), find_basis(energy_of(x_NI), 8)
    take_out(energy_II, basis_IK)
    expected_I = energy_of(rest_of(x_NI.double(), basis_IK.double())).diagonal().float()
    is_near_I = energy_II.diagonal() < 1.2 * expected_I
    assert is_near_I.sum() >= 159  # input 7 is large itself


def test_a_direction_is_two_numbers_and_the_rest_one() -> None:
    """Rounding errors: 2^-4 of the rest at most, of a direction what two such roundings leave."""
    x_NI = correlated_inputs()
    basis_IK = find_basis(energy_of(x_NI), 16)
    rest_NI, once_NK, second_NK, again_NK = round_wide(x_NI, basis_IK, 1e-4).split(
        [160, 16, 16, 16], 1
    )
    along_NK = x_NI @ basis_IK
    assert torch.equal(once_NK, again_NK)
    exact_NI = rest_of(x_NI, basis_IK)
    assert 0.01 < (rest_NI - exact_NI).norm() / exact_NI.norm() < 0.04
    assert (once_NK + second_NK - along_NK).norm() < 0.002 * along_NK.norm()


def test_rounding_directions_twice_harms_less() -> None:
    form, x_NI = LinearFormat(Code.FP8, Activations.ROW), correlated_inputs()
    basis_IK = find_basis(energy_of(x_NI), RANK)
    wide_OJ = widen_weight(WEIGHT, basis_IK)
    rest_OI, along_OK = wide_OJ.split([160, RANK], 1)
    scale_O1 = find_scales(wide_OJ, form)
    codes_OJ = np.concatenate(
        [
            to_codes(rest_OI / scale_O1, Code.FP8),
            paired_codes(along_OK, scale_O1),
        ],
        1,
    )
    exact_NO = x_NI @ WEIGHT.T
    plain = torch.from_numpy(round_nearest(WEIGHT, form).dequantize())
    wide = torch.from_numpy(Quantized(codes_OJ, scale_O1.numpy()).dequantize())
    errors = [
        float((rows @ weight.T - exact_NO).norm() / exact_NO.norm())
        for rows, weight in (
            (round_rows(x_NI, form), plain),
            (round_wide(x_NI, basis_IK, 1e-4), wide),
        )
    ]
    assert errors[1] < 0.15 * errors[0]
