"""This file owns the rounds: which side encodes what, when, so that noise hits all sides alike.

Each round gives every side the same texts, one side at a time, another side first each time. What
is compared are times of one round; a slow minute of the machine is in both. Legend: N texts,
D hidden.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.bench.mixes import Mix
from nvembed_deploy.bench.process import WorkerProcess

Workers = dict[str, WorkerProcess]
Note = Callable[[str], None]
Ceiling = Callable[[], dict[str, float]]

Groups = list[tuple[str, list[str]]]

_WARM_TEXTS = 4
_LEAST_ROUNDS = 2
_LEAST_SINGLES, _MOST_SINGLES = 5, 200


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of throughput by side and mix, about; latency takes half as much again.
        rounds: most rounds to divide them by.
        texts: least texts in a round; None leaves it to the mix.
    """

    seconds: float = 20.0
    rounds: int = 5
    texts: int | None = None


@dataclass
class MixRun:
    """What was seen of one mix: seconds by side, round by round.

    Attributes:
        count: texts in a round.
        lengths: their real tokens, instruction included.
        encode: seconds of `encode`, by side.
        tokenize: seconds of tokenisation alone, by side that shows it.
        singles: seconds of one text at a time, by side.
        cosine: of each text with the first side's, [N], by side.
        ceiling: FLOP/s by number format, round by round.
    """

    name: str
    count: int
    lengths: list[int]
    encode: dict[str, list[float]] = field(default_factory=dict)
    tokenize: dict[str, list[float]] = field(default_factory=dict)
    singles: dict[str, list[float]] = field(default_factory=dict)
    cosine: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    ceiling: list[dict[str, float]] = field(default_factory=list)


def measure_mix(mix: Mix, workers: Workers, ceiling: Ceiling, effort: Effort, note: Note) -> MixRun:
    """Measure one mix on all sides.

    Args:
        mix: the texts.
        workers: the open sides by name; the first is who the others are compared with.
        ceiling: measures the machine.
        effort: how long.
        note: told what is done now.
    """
    note(f"{mix.name}: warm up")
    count, rounds = _share_out(mix, _warm_up(mix, workers), effort)
    groups = mix.groups(count)
    lengths = next(iter(workers.values())).ask("tokenize", groups=groups)["lengths"]
    run = MixRun(mix.name, count, lengths, singles={}, cosine={})
    with tempfile.TemporaryDirectory(prefix="nvembed-bench-") as folder:
        for number in range(rounds):
            note(f"{mix.name}: round {number + 1} of {rounds}, {count} texts")
            run.ceiling.append(ceiling())
            _round(run, workers, groups, _Place(number, Path(folder)))
        run.cosine = _compare(workers, Path(folder))
    note(f"{mix.name}: single texts")
    run.singles = _singles(mix, workers, effort.seconds / 2)
    return run


def _warm_up(mix: Mix, workers: Workers) -> float:
    """Encode a few texts on all sides; return the slowest one's seconds by text."""
    groups = mix.groups(_WARM_TEXTS)
    texts = sum(len(group) for _, group in groups)
    slowest: float = max(w.ask("encode", groups=groups)["seconds"] for w in workers.values())
    return slowest / texts


def _share_out(mix: Mix, text_seconds: float, effort: Effort) -> tuple[int, int]:
    """Return how many texts make a round, and how many rounds there are."""
    least = min(effort.texts or mix.least_texts, len(mix.texts))
    fitting = int(effort.seconds / effort.rounds / text_seconds)
    count = min(max(least, fitting), len(mix.texts))
    rounds = int(effort.seconds / (text_seconds * count))
    return count, min(max(_LEAST_ROUNDS, rounds), effort.rounds)


@dataclass(frozen=True)
class _Place:
    """Which round it is, and where its rows may be left."""

    number: int
    folder: Path


def _round(run: MixRun, workers: Workers, groups: Groups, place: _Place) -> None:
    for name in _rotated(workers, place.number):
        worker, request = workers[name], {"groups": groups}
        rows = str(place.folder / f"{list(workers).index(name)}.npy")
        seconds = worker.ask("encode", **request, out=rows)["seconds"]
        run.encode.setdefault(name, []).append(seconds)
        tokenize = worker.ask("tokenize", **request)["seconds"]
        if tokenize is not None:
            run.tokenize.setdefault(name, []).append(tokenize)
    run.encode = {name: run.encode[name] for name in workers}


def _compare(workers: Workers, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Return each side's cosine with the first, by text, of the rows that a round left."""
    rows = [np.load(folder / f"{i}.npy").astype(np.float64) for i in range(len(workers))]
    return {name: _cosine(rows_ND, rows[0]) for name, rows_ND in zip(workers, rows, strict=True)}


def _cosine(left_ND: NDArray[np.float64], right_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's cosine, 0 where one has no direction: zeros, or numbers that are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norms_N = np.linalg.norm(left_ND, axis=1) * np.linalg.norm(right_ND, axis=1)
        cosine_N = (left_ND * right_ND).sum(1) / norms_N
    return np.where(np.isfinite(cosine_N), cosine_N, 0.0)


def _singles(mix: Mix, workers: Workers, seconds: float) -> dict[str, list[float]]:
    """Encode texts alone, each on all sides before the next, until the slowest has had its time."""
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for number, text in enumerate(mix.texts[:_MOST_SINGLES]):
        slowest = max(sum(times) for times in taken.values())
        if number >= _LEAST_SINGLES and slowest > seconds:
            break
        for name in _rotated(workers, number):
            groups = [(text.instruction, [text.text])]
            taken[name].append(workers[name].ask("encode", groups=groups)["seconds"])
    return taken


def _rotated(workers: Workers, number: int) -> Iterator[str]:
    """Yield the names in an order whose beginning moves on with `number`."""
    names = list(workers)
    yield from (names[(number + i) % len(names)] for i in range(len(names)))
