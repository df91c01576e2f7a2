"""This file owns the cost curves (against batch, length and corpus) and the cliff check.

A cliff is a batch of mixed lengths that costs more than its tokens: what padding does. Sides are
measured in turns, each point `REPEATS` times; a point is the median.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass

from nvembed_deploy.bench.measure import Note, Workers
from nvembed_deploy.bench.mixes import Lengths, cut_texts

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 64, 256, 1024)
CORPORA = (8, 32, 128)
BATCH_TOKENS = 64
CORPUS_TOKENS = (20, 80)
MIXED_LENGTHS, MIXED_TEXTS = (16, 64, 256), 8
REPEATS = 3
CLIFF = 1.10
"""Most that mixed lengths may cost over the sum of the lengths alone."""


@dataclass(frozen=True)
class Work:
    """One call of `encode`: its place on the curve's axis, its texts, and their tokens."""

    at: int
    texts: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Point:
    """The cost of one piece of work."""

    at: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Real tokens."""
        return self.tokens / self.seconds


Curve = dict[str, list[Point]]
"""Points by side."""


@dataclass(frozen=True)
class Scaling:
    """The curves of all sides.

    Attributes:
        batch: texts of `BATCH_TOKENS` tokens in one call.
        length: one text.
        corpus: texts of `CORPUS_TOKENS` tokens in one call.
        mixed: by side, what a call of mixed lengths costs over calls of one length each.
    """

    batch: Curve
    length: Curve
    corpus: Curve
    mixed: dict[str, float]

    @property
    def cliffs(self) -> list[str]:
        """The sides whose mixed batches cost more than `CLIFF`."""
        return [name for name, ratio in self.mixed.items() if ratio > CLIFF]


def measure_scaling(workers: Workers, lengths: Lengths, max_tokens: int, note: Note) -> Scaling:
    """Measure every curve on every side.

    Args:
        workers: the open sides by name.
        lengths: counts the tokens of texts.
        max_tokens: the most that the model takes of one text.
        note: told what is done now.
    """
    short = (BATCH_TOKENS * 9 // 10, BATCH_TOKENS)
    sizes = [n for n in LENGTHS if n <= max_tokens]
    curves = {
        "batch": [_work(n, short, n, lengths) for n in BATCHES],
        "length": [_work(n, (n * 9 // 10, n), 1, lengths) for n in sizes],
        "corpus": [_work(n, CORPUS_TOKENS, n, lengths) for n in CORPORA],
    }
    found: dict[str, Curve] = {}
    for name, works in curves.items():
        note(f"scaling: {name}")
        found[name] = _curve(workers, works)
    note("scaling: mixed lengths")
    sizes = [n for n in MIXED_LENGTHS if n <= max_tokens]
    alone = [_work(n, (n * 9 // 10, n), MIXED_TEXTS, lengths) for n in sizes]
    return Scaling(**found, mixed=_mixed(workers, alone))


def _work(at: int, bounds: tuple[int, int], count: int, lengths: Lengths) -> Work:
    texts = cut_texts(bounds, count, lengths)
    return Work(at, tuple(texts), sum(lengths(texts)))


def _seconds(workers: Workers, name: str, work: Work) -> float:
    seconds: float = workers[name].ask("encode", groups=[["", list(work.texts)]])["seconds"]
    return seconds


def _curve(workers: Workers, works: list[Work]) -> Curve:
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(REPEATS):
        for work in works:
            for name in workers:
                taken.setdefault((name, work.at), []).append(_seconds(workers, name, work))
    return {
        name: [Point(w.at, w.tokens, statistics.median(taken[name, w.at])) for w in works]
        for name in workers
    }


def _mixed(workers: Workers, alone: list[Work]) -> dict[str, float]:
    """Return the time of all texts in one call, in no order, over the sum of each length's own."""
    texts = [text for work in alone for text in work.texts]
    random.Random(0).shuffle(texts)
    together = Work(0, tuple(texts), sum(work.tokens for work in alone))
    ratios: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(REPEATS):
        for name in workers:
            apart = sum(_seconds(workers, name, work) for work in alone)
            ratios[name].append(_seconds(workers, name, together) / apart)
    return {name: statistics.median(values) for name, values in ratios.items()}
