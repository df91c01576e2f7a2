"""Tests of batching.py."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.batching import BatchLimits, plan_batches


def padding(lengths: list[int], batch: list[int]) -> int:
    taken = [lengths[i] for i in batch]
    return max(taken) * len(taken) - sum(taken)


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_batch_and_every_batch_within_its_limits(seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(3, 1.2, 500).astype(int).clip(1).tolist()
    limits = BatchLimits(max_batch_tokens=512, max_padding_tokens=64, batch_size=40)
    batches = plan_batches(lengths, limits)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    for batch in batches:
        assert len(batch) <= 40
        assert padding(lengths, batch) <= 64
        assert len(batch) * max(lengths[i] for i in batch) <= 512 or len(batch) == 1


def test_the_longest_texts_come_first() -> None:
    batches = plan_batches([3, 9, 5, 9], BatchLimits(max_batch_tokens=18))
    assert batches == [[1, 3], [2, 0]]


def test_a_text_beyond_the_budget_runs_alone() -> None:
    assert plan_batches([100, 2, 3], BatchLimits(max_batch_tokens=10)) == [[0], [2, 1]]


def test_a_few_short_texts_share_one_batch_whatever_their_lengths() -> None:
    lengths = [30, 25, 20, 18, 17]
    assert len(plan_batches(lengths, BatchLimits(max_padding_tokens=40))) == 1


def test_a_short_text_is_not_padded_to_a_long_one() -> None:
    assert plan_batches([1000, 10], BatchLimits.for_device("cuda:0")) == [[0], [1]]


def test_where_nothing_is_padded_a_batch_is_as_full_as_it_may_be() -> None:
    limits = BatchLimits(max_batch_tokens=10, max_padding_tokens=None)
    assert plan_batches([1, 3, 4, 2, 2, 9], limits) == [[5], [2, 1, 3], [4, 0]]
    assert plan_batches([2, 4, 3, 2], limits) == [[1, 2, 0], [3]]
    assert plan_batches([2, 4, 4, 2], limits) == [[1, 2, 0], [3]]


def test_no_texts_make_no_batches() -> None:
    assert plan_batches([], BatchLimits()) == []


def test_padding_is_far_less_than_in_batches_of_fixed_size() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 2000).astype(int).clip(2, 512).tolist()
    batches = plan_batches(lengths, BatchLimits.for_device("cuda"))
    wasted = sum(padding(lengths, batch) for batch in batches) / sum(lengths)
    fixed = [list(range(i, i + 32)) for i in range(0, 1984, 32)]
    assert wasted < 0.08
    assert sum(padding(lengths, batch) for batch in fixed) / sum(lengths) > 1


@pytest.mark.parametrize("name", ["max_batch_tokens", "batch_size"])
def test_a_bound_of_zero_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0, expected a whole number of at least 1"):
        BatchLimits(**{name: 0})
