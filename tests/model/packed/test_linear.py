"""Tests of the packed model's linears."""

from __future__ import annotations

import numpy as np
import torch

from nvembed_deploy.export.formats import SCHEMES, Code
from nvembed_deploy.export.principal import find_basis, paired_codes, round_wide, widen_weight
from nvembed_deploy.export.quantize import find_scales, round_nearest, to_codes
from nvembed_deploy.model.packed.kernels import FP8, SMALLEST_ROW, Kernels, to_fp8_rows
from nvembed_deploy.model.packed.linear import DenseLinear, Fp8Linear, WideLinear


def test_fp8_is_near_dense_and_coarser():
    torch.manual_seed(0)
    x_TI, weight_OI, bias_O = torch.randn(7, 64), torch.randn(32, 64), torch.randn(32)
    exact = DenseLinear(weight_OI, bias_O)(x_TI)
    coarse = Fp8Linear.of(weight_OI, bias_O, Kernels())(x_TI)
    error = ((coarse - exact).norm() / exact.norm()).item()
    assert 0.005 < error < 0.05  # measured 0.034: two roundings of 3 bits


def test_an_outlier_row_does_not_coarsen_the_others():
    torch.manual_seed(0)
    x_TI, weight_OI = torch.randn(7, 64), torch.randn(32, 64)
    linear = Fp8Linear.of(weight_OI, None, Kernels())
    alone = linear(x_TI)
    x_TI[3] *= 1e5
    rows = [row for row in range(7) if row != 3]
    torch.testing.assert_close(linear(x_TI)[rows], alone[rows], rtol=0, atol=0)


def test_its_weight_is_as_good_as_an_exported_graphs():
    torch.manual_seed(0)
    weight_OI = torch.randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    linear = Fp8Linear.of(weight_OI, None, Kernels())
    ours_OI = linear.codes_OI.float() * linear.scale_O[:, None]
    exported_OI = torch.from_numpy(round_nearest(weight_OI, SCHEMES["fp8"].linear).dequantize())
    error_O, exported_O = (
        (x - weight_OI).norm(dim=1) / weight_OI.norm(dim=1) for x in (ours_OI, exported_OI)
    )
    assert (error_O < 1.35 * exported_O).all()  # measured up to 1.22: an export searches its range


def test_a_rounded_input_gives_what_rounding_it_here_gives():
    torch.manual_seed(0)
    x_TI, linear = torch.randn(7, 64), Fp8Linear.of(torch.randn(32, 64), None, Kernels())
    assert linear.takes is FP8
    torch.testing.assert_close(linear(to_fp8_rows(x_TI)), linear(x_TI), rtol=0, atol=0)


def wide_linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, rank: int) -> WideLinear:
    """Round a weight as an export does, without texts."""
    basis_IK = find_basis(x_TI.T @ x_TI, rank)
    wide_OJ = widen_weight(weight_OI, basis_IK)
    rest_OI, along_OK = wide_OJ.split(basis_IK.shape, 1)
    scale_O1 = find_scales(wide_OJ, SCHEMES["fp8"].linear)
    rest = to_codes(rest_OI / scale_O1, Code.FP8)
    codes_OJ = np.concatenate([rest, paired_codes(along_OK, scale_O1)], 1).view(np.uint8)
    coded = Fp8Linear(torch.from_numpy(codes_OJ).view(FP8), scale_O1[:, 0], Kernels())
    return WideLinear(coded, basis_IK)


def test_directions_rounded_twice_are_those_of_an_exported_graph():
    torch.manual_seed(0)
    x_TI = torch.randn(7, 64) * torch.logspace(2, -1, 64) @ torch.randn(64, 64)
    weight_OI = torch.randn(32, 64)
    wide = wide_linear(x_TI, weight_OI, 16)
    wide_OJ = wide.linear.codes_OI.float() * wide.linear.scale_O[:, None]
    exported = round_wide(x_TI, wide.basis_IK, SMALLEST_ROW) @ wide_OJ.T
    torch.testing.assert_close(wide(x_TI), exported, rtol=2e-3, atol=1e-4 * float(exported.max()))
    exact = x_TI @ weight_OI.T
    plain = Fp8Linear.of(weight_OI, None, Kernels())
    assert (wide(x_TI) - exact).norm() < 0.5 * (plain(x_TI) - exact).norm()


def test_a_dense_linear_of_wide_codes_rounds_no_input():
    torch.manual_seed(0)
    x_TI, weight_OI = torch.randn(7, 64), torch.randn(32, 64)
    wide = wide_linear(x_TI, weight_OI, 16)
    rest_TI = x_TI - x_TI @ wide.basis_IK @ wide.basis_IK.T
    once_TK = x_TI @ wide.basis_IK
    wide_OJ = wide.linear.codes_OI.float() * wide.linear.scale_O[:, None]
    expected = torch.cat([rest_TI, once_TK, 0 * once_TK, once_TK], 1) @ wide_OJ.T
    torch.testing.assert_close(wide.dense()(x_TI), expected, rtol=1e-4, atol=1e-4)
