"""Tests of nvembed_deploy/export/compensate.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.export.compensate import _reversed_factor, compensate
from nvembed_deploy.export.formats import Activations, Code, LinearFormat
from nvembed_deploy.export.quantize import find_scales, round_nearest, round_to_code
from tests import factories

FORMS = [
    LinearFormat(Code.INT8, Activations.ROW),
    LinearFormat(Code.FP8, Activations.ROW),
    LinearFormat(Code.INT4, Activations.FLOAT, 32),
]
WEIGHT = factories.values("weight", (48, 160))
GIVEN = torch.from_numpy(WEIGHT)


def correlated_inputs(tokens: int = 900) -> torch.Tensor:
    """Inputs that share directions, as a decoder's do, one of them large."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 160)) * 2
    noise = rng.standard_normal((tokens, 160)) * 0.1
    inputs = rng.standard_normal((tokens, 24)) @ mixing + noise
    inputs[:, 7] *= 20
    return torch.from_numpy(inputs).float()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.code.value)
def test_outputs_are_nearer_than_with_the_nearest_codes(form: LinearFormat) -> None:
    seen, held = correlated_inputs().split([600, 300])
    errors = []
    for quantized in (round_nearest(GIVEN, form), compensate(GIVEN, seen.T @ seen, form)):
        difference = torch.from_numpy(quantized.dequantize() - WEIGHT)
        errors.append(float((held @ difference.T).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.code.value)
def test_unrelated_inputs_leave_nothing_to_make_up_for(form: LinearFormat) -> None:
    got = compensate(GIVEN, torch.eye(160), form)
    nearest = round_nearest(GIVEN, form)
    np.testing.assert_array_equal(got.scale_OG, nearest.scale_OG)
    np.testing.assert_array_equal(got.codes_OI, nearest.codes_OI)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.code.value)
def test_codes_are_those_of_one_column_at_a_time_in_float64(form: LinearFormat) -> None:
    """Of more inputs than are updated at once. A code on the edge between two may differ."""
    weight = torch.from_numpy(factories.values("wide", (8, 320)))
    x = torch.randn(900, 320, generator=torch.Generator().manual_seed(0))
    x = x @ torch.from_numpy(factories.values("mixing", (320, 320)))
    energy = (x.T @ x).double()
    order = energy.diagonal().argsort(descending=True)
    damped = energy[order][:, order]
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    scale = find_scales(weight, form).repeat_interleave(form.block or 320, 1)
    left, expected = weight.double()[:, order], torch.empty(8, 320)
    for place, column in enumerate(order):
        scaled = left[:, place] / scale[:, column]
        code = round_to_code(scaled.float(), form.code)
        error = (left[:, place] - code * scale[:, column]) / factor[place, place]
        left[:, place + 1 :] -= error[:, None] * factor[place, place + 1 :]
        expected[:, column] = code
    codes = compensate(weight, energy.float(), form).codes_OI.astype(np.float32)
    assert np.mean(codes != expected.numpy()) < 0.01  # none here


def test_inputs_never_used_do_no_harm() -> None:
    inputs = correlated_inputs()
    inputs[:, 40:60] = 0
    quantized = compensate(GIVEN, inputs.T @ inputs, FORMS[0])
    assert np.isfinite(quantized.dequantize()).all()
    error = np.abs(quantized.dequantize() - WEIGHT)[:, 40:60]
    assert error.max() <= np.abs(WEIGHT).max() / 127


def test_the_weight_is_left_as_it_was() -> None:
    inputs, weight = correlated_inputs(), GIVEN.clone()
    compensate(weight, inputs.T @ inputs, FORMS[0])
    assert torch.equal(weight, GIVEN)


@pytest.mark.parametrize("size", [70, 512, 1100])
def test_the_factor_is_that_of_the_damped_inverse(size: int) -> None:
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(0))
    energy = (x.T @ x) * torch.linspace(0.1, 3, size).outer(torch.linspace(0.1, 3, size))
    order = energy.diagonal().argsort(descending=True)
    damped = energy.double()[order][:, order]
    lower = _reversed_factor(energy, order)
    assert lower.data_ptr() == energy.data_ptr(), "no second matrix"
    upper = lower.flip(0, 1)
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    assert torch.equal(upper, upper.triu())
    identity = upper.double().T @ upper.double() @ damped
    torch.testing.assert_close(identity, torch.eye(size).double(), atol=1e-3, rtol=0)
