"""The speed limit: one number for each format that can be timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nvembed_deploy.bench import ceiling
from nvembed_deploy.bench.ceiling import measure_ceiling


def test_each_known_format_has_a_rate() -> None:
    found = measure_ceiling(64, 128, ["fp32", "bf16", "int8"])
    assert set(found) == {"fp32", "bf16"}
    assert all(1e6 < rate < 1e15 for rate in found.values())


def test_a_processor_has_no_limit_of_float16_which_it_computes_in_float32() -> None:
    assert set(measure_ceiling(64, 128, ["fp32", "fp16"])) == {"fp32"}


def test_numpy_stands_in_where_torch_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "find_spec", lambda _name: None)
    assert set(measure_ceiling(64, 128, ["fp32", "bf16"])) == {"fp32"}


def test_a_gpu_that_torch_does_not_see_has_no_limit_rather_than_a_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure_ceiling(64, 128, ["fp32", "fp16"], "tensorrt:0") == {}
    monkeypatch.setattr(ceiling, "find_spec", lambda _name: None)
    assert measure_ceiling(64, 128, ["fp32"], "cuda:0") == {}


@pytest.mark.parametrize(
    ("device", "place"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("tensorrt-rtx:2", "cuda:2")]
)
def test_the_product_runs_on_the_gpu_of_the_sides_number(
    monkeypatch: pytest.MonkeyPatch, device: str, place: str
) -> None:
    asked: list[str] = []

    def product(_hidden: int, _feed: int, _dtype: str, on: str) -> Callable[[], None]:
        asked.append(on)
        return lambda: None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ceiling, "_torch_product", product)
    monkeypatch.setattr(ceiling, "_LEAST_SECONDS", 0.0)
    assert set(measure_ceiling(64, 128, ["fp16"], device)) == {"fp16"}
    assert asked == [place]
