"""Tests of the packed model's linears."""

from __future__ import annotations

import torch

from nvembed_deploy.export.formats import SCHEMES
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.linear import DenseLinear, Fp8Linear


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
    exported_OI = torch.from_numpy(
        round_nearest(weight_OI.numpy(), SCHEMES["fp8"].linear).dequantize()
    )
    error_O, exported_O = (
        (x - weight_OI).norm(dim=1) / weight_OI.norm(dim=1) for x in (ours_OI, exported_OI)
    )
    assert (error_O < 1.35 * exported_O).all()  # measured up to 1.22: an export searches its range
