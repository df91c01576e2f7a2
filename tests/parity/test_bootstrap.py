"""Tests of nvembed_deploy/parity/bootstrap.py: the interval covers the truth, and is paired."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import sem, t

from nvembed_deploy.parity.bootstrap import paired_interval
from nvembed_deploy.parity.scores import Items, Part
from nvembed_deploy.parity.statistic import mean_of


def items(*values: np.ndarray) -> Items:
    return Items(tuple(Part(v, mean_of, "queries") for v in values))


def test_equal_items_differ_by_nothing() -> None:
    values = np.random.default_rng(0).random(100)
    found = paired_interval(items(values), items(values.copy()))
    assert (found.low, found.high, found.items, found.unit) == (0.0, 0.0, 100, "queries")


def test_of_a_mean_of_many_items_it_is_students_interval() -> None:
    base, lost = np.random.default_rng(1).normal(size=(2, 400))
    lost = 0.02 + 0.1 * lost
    found = paired_interval(items(base - lost), items(base))
    error = sem(lost)
    low, high = t.interval(0.95, 399, -lost.mean(), error)
    assert found.low == pytest.approx(low, abs=0.2 * error)  # at 90 % it would be 0.32 off
    assert found.high == pytest.approx(high, abs=0.2 * error)


def test_what_both_have_in_common_cancels() -> None:
    generator = np.random.default_rng(2)
    base = generator.random(400)  # spread 0.3 over items
    found = paired_interval(items(base + 0.001), items(base))
    assert found.high - found.low < 1e-9
    assert found.low == pytest.approx(0.001)


def test_a_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(3)
    one, other = items(generator.random(50)), items(generator.random(50))
    assert paired_interval(one, other, 7) == paired_interval(one, other, 7)
    assert paired_interval(one, other, 7) != paired_interval(one, other, 8)


def test_other_items_are_no_pair() -> None:
    with pytest.raises(ValueError, match=r"\[3\] items against \[4\]"):
        paired_interval(items(np.ones(3)), items(np.ones(4)))


def test_a_small_subset_weighs_as_much_as_a_large_one() -> None:
    large, small = np.full(400, 0.5), np.full(20, 0.5)
    found = paired_interval(items(large, small - 0.2), items(large, small))
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(-0.1)
    assert found.items == 420
