"""Tests of nvembed_deploy/train/data/negatives.py: nothing above the ceiling, the hardest first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.negatives import DEFAULT_MARGINS, Choice, Rule, choose

SCORES = np.float32([0.9, 0.8, 0.77, 0.76, 0.7, 0.5])


@pytest.mark.parametrize(
    ("choice", "chosen", "rejected"),
    [
        (Choice(count=2), [3, 4], 3),
        (Choice(margin=0.9, count=2), [4, 5], 4),
        (Choice(Rule.MARGIN, 0.05, count=2), [4, 5], 4),
        (Choice(Rule.MARGIN, 0.0, count=2), [1, 2], 1),
        (Choice(Rule.TOP_K, 0.0, count=2), [0, 1], 0),
    ],
)
def test_each_rule_has_its_ceiling(choice: Choice, chosen: list[int], rejected: int) -> None:
    ceiling = np.full(6, choice.ceiling(0.8001))
    places, count = choose(SCORES, ceiling, choice.count)
    assert (places.tolist(), count) == (chosen, rejected)


def test_each_candidate_may_have_a_ceiling_of_its_own() -> None:
    places, rejected = choose(SCORES, np.array([0.76, np.inf, 0.76, 0.76, 0.76, 0.4]), 2)
    assert (places.tolist(), rejected) == ([1, 3], 3)


def test_there_may_be_fewer_than_asked_for() -> None:
    assert choose(SCORES, np.full(6, 0.57), 3)[0].tolist() == [5]


@given(st.floats(-1, 1), st.sampled_from(Rule), st.floats(0, 1))
def test_a_margin_never_lets_a_negative_above_the_positive(
    positive: float, rule: Rule, margin: float
) -> None:
    ceiling = Choice(rule, margin).ceiling(positive)
    assert ceiling == float("inf") if rule is Rule.TOP_K else ceiling <= positive + 1e-9


def test_the_default_is_the_papers() -> None:
    assert Choice() == Choice(Rule.PERC_POS, 0.95, 7, 100)
    assert Choice().ceiling(0.8) == pytest.approx(0.76)
    assert set(DEFAULT_MARGINS) == set(Rule)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"margin": 1.2}, "margin is 1.2, expected 0 to 1 for perc-pos"),
        ({"rule": Rule.MARGIN, "margin": -0.1}, "margin is -0.1, expected 0 to 2"),
        ({"count": 7, "depth": 7}, "depth is 7, expected more than the 7 negatives"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Choice(**values)
