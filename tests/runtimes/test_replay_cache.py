"""Tests of runtimes/replay_cache.py: shapes that come again, and no more than fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvembed_deploy.runtimes.replay_cache import ReplayCache


def test_a_shape_is_wanted_from_the_second_time_on() -> None:
    cache: ReplayCache[str] = ReplayCache(2)
    assert [cache.wants("a"), cache.wants("b"), cache.wants("a")] == [False, False, True]


def test_the_least_recently_used_gives_way_and_is_returned() -> None:
    cache: ReplayCache[str] = ReplayCache(2)
    assert cache.keep("a", "A") is None
    assert cache.keep("b", "B") is None
    assert cache.get("a") == "A"
    assert cache.keep("c", "C") == "B"
    assert (cache.get("b"), cache.get("a"), cache.get("c")) == (None, "A", "C")
    assert cache.clear() == ["A", "C"]
    assert len(cache) == 0


def test_what_gave_way_must_be_met_twice_again() -> None:
    cache: ReplayCache[str] = ReplayCache(1)
    for key in ("a", "a", "b", "b"):
        if cache.get(key) is None and cache.wants(key):
            cache.keep(key, key)
    assert cache.get("b") == "b"
    assert [cache.wants("a"), cache.wants("a")] == [False, True]


def test_a_limit_of_nothing_keeps_nothing() -> None:
    cache: ReplayCache[str] = ReplayCache(0)
    assert [cache.wants("a") for _ in range(3)] == [False] * 3


@pytest.mark.parametrize("limit", [1, 3])
@given(keys=st.lists(st.integers(0, 40), max_size=200))
def test_neither_recordings_nor_memories_grow_without_end(limit: int, keys: list[int]) -> None:
    cache: ReplayCache[int] = ReplayCache(limit)
    freed = kept = 0
    for key in keys:
        if cache.get(key) is None and cache.wants(key):
            kept += 1
            freed += cache.keep(key, key) is not None
        assert len(cache) == kept - freed <= limit
        assert len(cache._seen) <= 8 * limit
