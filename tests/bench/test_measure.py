"""The rounds: who is asked when, for how many texts, on sides of a planted speed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.bench.measure import Effort, MixRun, _cosine, measure_mix
from nvembed_deploy.bench.mixes import Mix, Text

MIX = Mix("planted", tuple(Text(f"text {i}", "find" * (i % 2)) for i in range(100)), least_texts=20)


@dataclass
class Planted:
    """A side that takes `text_seconds` for a text, and notes every call in a common book."""

    name: str
    text_seconds: float
    book: list[tuple[str, str, int]]
    row_D: list[float] = field(default_factory=lambda: [1.0, 0.0])

    def ask(self, do: str, groups: list[Any], out: str | None = None) -> dict[str, Any]:
        """Answer as a worker does."""
        texts = sum(len(group) for _, group in groups)
        self.book.append((do, self.name, texts))
        if do == "tokenize":
            return {"seconds": 0.001, "lengths": [10] * texts}
        if out is not None:
            np.save(Path(out), np.array([self.row_D] * texts))
        return {"seconds": self.text_seconds * texts}


def measure(effort: Effort, seconds: tuple[float, float] = (0.1, 0.2)) -> tuple[MixRun, list[Any]]:
    """Measure two sides; return the run and the book of calls."""
    book: list[tuple[str, str, int]] = []
    sides: Any = {
        "ours": Planted("ours", seconds[0], book),
        "theirs": Planted("theirs", seconds[1], book, [0.6, 0.8]),
    }
    rates = itertools.count(1.0)
    return measure_mix(MIX, sides, lambda: {"fp32": next(rates)}, effort, lambda _text: None), book


def test_every_round_begins_with_another_side() -> None:
    run, book = measure(Effort(seconds=60, rounds=3))
    order = [name for do, name, texts in book if do == "encode" and texts == run.count]
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert list(run.encode) == ["ours", "theirs"]
    assert run.ceiling == [{"fp32": 1.0}, {"fp32": 2.0}, {"fp32": 3.0}]


def test_a_round_is_as_large_as_the_slowest_side_has_time_for() -> None:
    run, _ = measure(Effort(seconds=60, rounds=3))
    assert (run.count, len(run.ceiling)) == (100, 3)
    run, _ = measure(Effort(seconds=40, rounds=5))
    assert (run.count, len(run.ceiling)) == (40, 5)


@pytest.mark.parametrize(("texts", "count"), [(None, 20), (7, 7)])
def test_too_little_time_still_makes_two_rounds_of_the_least(texts: int | None, count: int) -> None:
    run, _ = measure(Effort(seconds=0.01, rounds=5, texts=texts))
    assert run.count == count
    assert {name: len(times) for name, times in run.encode.items()} == {"ours": 2, "theirs": 2}


def test_rows_are_compared_with_the_first_side() -> None:
    run, _ = measure(Effort(seconds=1))
    assert np.allclose(run.cosine["ours"], 1)
    assert np.allclose(run.cosine["theirs"], 0.6)


@pytest.mark.parametrize("row_D", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_row_without_a_direction_is_like_none(row_D: list[float]) -> None:
    cosine_2 = _cosine(np.array([row_D, [0.6, 0.8]]), np.array([[1.0, 0.0]] * 2))
    assert cosine_2.tolist() == [0.0, 0.6]


def test_singles_end_when_the_slowest_has_had_its_time() -> None:
    run, _ = measure(Effort(seconds=4), seconds=(0.1, 0.2))
    assert len(run.singles["ours"]) == len(run.singles["theirs"]) == 11
