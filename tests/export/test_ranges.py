"""Tests of nvembed_deploy/export/ranges.py: where a static range is clipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.quantize import round_to_code
from nvembed_deploy.export.ranges import InputObserver, SeenInputs


def seen(x_NI: torch.Tensor, weights_N1: torch.Tensor | None = None) -> SeenInputs:
    inputs = SeenInputs()
    inputs.add(x_NI, torch.ones(len(x_NI), 1) if weights_N1 is None else weights_N1)
    return inputs


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def output_error(x_NI: torch.Tensor, weight_OI: torch.Tensor, scale: float) -> float:
    rounded = round_to_code(x_NI / scale, Code.INT8) * scale
    return float(((rounded - x_NI) @ weight_OI.T).square().sum())


def test_the_range_found_has_less_error_in_the_output_than_the_largest_value_seen() -> None:
    x_NI, weight_OI = noise(32, 64), noise(16, 64)
    x_NI[3, 5] = 40
    weight_OI[:, 5] *= 1e-3  # an outlier that the output hardly hears of
    inputs = seen(x_NI)
    scale = inputs.find_scale(weight_OI, Code.INT8)
    assert inputs.largest == 40
    assert output_error(x_NI, weight_OI, scale) < output_error(x_NI, weight_OI, 40 / 127) / 4


def test_an_outlier_that_matters_is_not_clipped() -> None:
    x_NI, weight_OI = noise(32, 64), noise(16, 64)
    x_NI[:, 5] = 40
    assert seen(x_NI).find_scale(weight_OI, Code.INT8) == pytest.approx(40 / 127, rel=0.1)


def test_a_token_that_counts_little_may_be_clipped() -> None:
    x_NI, weights_N1 = noise(32, 64), torch.ones(32, 1)
    x_NI[0] *= 100
    weights_N1[0] = 1e-4
    scale = seen(x_NI, weights_N1).find_scale(noise(16, 64), Code.INT8)
    assert scale * 127 < float(x_NI.abs().max()) / 10


def test_scales_are_float16_values_and_zeros_have_one() -> None:
    for x_NI in (noise(8, 16), torch.zeros(8, 16)):
        scale = seen(x_NI).find_scale(noise(4, 16), Code.FP8)
        assert scale == float(np.float16(scale)) > 0


def test_few_tokens_of_a_batch_are_kept() -> None:
    inputs = seen(noise(1000, 4))
    assert 32 + 8 <= sum(map(len, inputs.rows_NI)) < 64 + 8


def test_tokens_that_are_kept_stand_for_all() -> None:
    """Errors are squared, and those with the largest values count once more."""
    counts = sum(float(weights.square().sum()) for weights in seen(noise(1000, 4)).weights_N1)
    assert counts == pytest.approx(1000 + 8, rel=0.03)


def test_the_largest_token_of_many_is_kept_wherever_it_is() -> None:
    x_NI = noise(1000, 64)
    x_NI[777] *= 30
    scale = seen(x_NI).find_scale(noise(16, 64), Code.FP8)
    assert scale * Code.FP8.greatest > 0.9 * float(x_NI.abs().max())


def test_the_worst_token_is_the_one_that_is_clipped_or_crushed() -> None:
    x_NI, weight_OI = noise(32, 64), noise(16, 64)
    assert seen(x_NI).worst_token(weight_OI, Code.INT8) < 1e-3
    x_NI[5] *= 300
    assert seen(x_NI).worst_token(weight_OI, Code.INT8) > 0.1


def test_the_worst_token_shows_even_where_it_hardly_counts_in_the_mean() -> None:
    x_NI, weights_N1 = noise(32, 64), torch.ones(32, 1)
    x_NI[5] *= 300
    weights_N1[5] = 1e-5
    assert seen(x_NI, weights_N1).worst_token(noise(16, 64), Code.INT8) > 0.9


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"])
def test_a_text_counts_the_same_whatever_its_length(name: str) -> None:
    kept_BS1 = torch.ones(2, 9, 1)
    kept_BS1[0, 3:] = 0
    observer = InputObserver(is_sampled=False)
    observer.weigh(kept_BS1)
    observer.add(name, noise(2, 9, 4), noise(2, 9, 5))
    short_N1, long_N1 = torch.cat(observer.seen[name].weights_N1).square().split([3, 9])
    assert float(short_N1.sum()) == pytest.approx(1)
    assert float(long_N1.sum()) == pytest.approx(1)


def test_an_error_beside_a_large_state_counts_less_where_it_is_added_to_it() -> None:
    observer = InputObserver(is_sampled=False)
    observer.weigh(torch.tensor([1.0, 0.01, 0.0]).reshape(1, 3, 1))
    for name in ("q_proj", "o_proj"):
        observer.add(name, noise(1, 3, 4), noise(1, 3, 5))
    weights = {name: torch.cat(seen.weights_N1) for name, seen in observer.seen.items()}
    assert torch.equal(weights["q_proj"][0], weights["q_proj"][1])
    assert torch.allclose(weights["o_proj"][1], weights["o_proj"][0] / 100)
    assert len(weights["o_proj"]) == 2  # padding is not seen


def test_a_text_without_a_pooled_token_does_no_harm() -> None:
    observer = InputObserver()
    observer.weigh(torch.tensor([[0.0, 0], [1, 1]])[..., None])
    observer.add("pooler.queries", noise(2, 2, 4), noise(2, 2, 5))
    assert torch.cat(observer.seen["pooler.queries"].weights_N1).isfinite().all()
