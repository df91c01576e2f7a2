"""Tests of nvembed_deploy/train/data/threads.py: all is done once, and nobody waits in vain."""

from __future__ import annotations

import threading
import time

import pytest

from nvembed_deploy.train.data.threads import in_threads


@pytest.mark.parametrize("count", [1, 3, 50])
def test_every_item_is_done_once(count: int) -> None:
    assert sorted(in_threads(lambda n: n * n, range(20), count)) == [n * n for n in range(20)]
    assert list(in_threads(lambda n: n, [], count)) == []


def test_as_many_work_at_a_time_as_asked_for() -> None:
    together = threading.Barrier(4, timeout=10)
    assert len(list(in_threads(lambda _: together.wait(), range(8), 4))) == 8


def test_an_error_is_raised_when_those_under_way_are_done() -> None:
    done, begun = [], threading.Event()

    def work(number: int) -> None:
        if number == 1:
            begun.wait(10)
            raise ValueError("the second")
        begun.set()
        time.sleep(0.2)
        done.append(number)

    with pytest.raises(ValueError, match="the second"):
        list(in_threads(work, range(50), 2))
    assert done == [0]


def test_who_stops_does_not_wait_and_nothing_more_is_begun() -> None:
    begun, go_on = [], threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number:
            go_on.wait(10)

    results = in_threads(work, range(50), 2)
    next(results)
    before = time.monotonic()
    results.close()
    assert time.monotonic() - before < 5
    go_on.set()
    time.sleep(0.05)
    assert len(begun) <= 3
