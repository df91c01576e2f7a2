"""The numbers that a run of rounds becomes."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.bench.flops import model_flops
from nvembed_deploy.bench.measure import MixRun
from nvembed_deploy.bench.report import MixNumbers, short, summarize
from nvembed_deploy.spec import ModelSpec

SPEC = ModelSpec()
FACTS = {"ours": {"dtype": "int8"}, "theirs": {"dtype": "bf16"}, "server": {}}


@pytest.fixture
def run() -> MixRun:
    """Three rounds of 30 tokens; the machine is half as fast in the last."""
    rounds = {"ours": [1.0, 1.0, 2.0], "theirs": [2.0, 3.0, 4.0], "server": [1.0, 1.0, 1.0]}
    return MixRun(
        "small",
        2,
        [10, 20],
        encode=rounds,
        tokenize={"ours": [0.1, 0.1, 0.1], "theirs": [0.3, 0.3, 0.3]},
        singles={name: [i / 1000 for i in range(1, 102)] for name in rounds},
        cosine={name: np.array([1.0, 0.5]) for name in rounds},
        ceiling=[{"fp32": 4e12, "bf16": 8e12}] * 2 + [{"fp32": 2e12, "bf16": 4e12}],
    )


@pytest.fixture
def numbers(run: MixRun) -> MixNumbers:
    """What they become."""
    return summarize(run, SPEC, FACTS)


def test_rates_are_medians_of_the_rounds(numbers: MixNumbers) -> None:
    ours = numbers.sides["ours"]
    assert (ours.slowest, ours.tokens_per_second, ours.fastest) == (15, 30, 30)
    assert ours.texts_per_second == 2
    assert ours.latency_ms == pytest.approx({"p50": 51, "p95": 96, "p99": 100, "count": 101})
    assert (ours.cosine_mean, ours.cosine_min) == (0.75, 0.5)


def test_a_ratio_is_taken_within_its_round(numbers: MixNumbers) -> None:
    # Of medians it would be 3; a slow minute that hits one round hits both sides of it.
    assert numbers.sides["theirs"].speedup == 2
    assert numbers.sides["ours"].speedup == 1


def test_utilisation_is_of_the_same_rounds_ceiling(numbers: MixNumbers) -> None:
    flops = model_flops(SPEC, [10, 20])
    assert numbers.sides["ours"].utilisation == pytest.approx(flops / 4e12)
    assert numbers.sides["theirs"].utilisation == pytest.approx(flops / 2 / 8e12)


def test_a_format_without_a_ceiling_is_held_against_fp32(numbers: MixNumbers) -> None:
    formats = {name: side.ceiling_dtype for name, side in numbers.sides.items()}
    assert formats == {"ours": "fp32", "theirs": "bf16", "server": ""}


def test_a_gpu_is_not_held_against_a_processor(run: MixRun) -> None:
    places = {"ours": "cpu", "theirs": "cuda:0", "server": "http://a"}
    facts = {name: FACTS[name] | {"device": place} for name, place in places.items()}
    found = summarize(run, SPEC, facts).sides
    assert [found[name].utilisation is None for name in places] == [False, True, True]
    on_gpus = facts | {"ours": facts["ours"] | {"device": "tensorrt:0"}}
    assert summarize(run, SPEC, on_gpus).sides["theirs"].utilisation is not None


def test_what_a_server_does_not_show_is_left_out(numbers: MixNumbers) -> None:
    server = numbers.sides["server"]
    assert (server.utilisation, server.tokenize_share) == (None, None)
    assert numbers.sides["theirs"].tokenize_share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "text"), [(0.7246, "0.725"), (97.66, "97.7"), (1390.2, "1,390"), (99.99, "100")]
)
def test_a_number_is_short_and_never_in_powers(value: float, text: str) -> None:
    assert short(value) == text
