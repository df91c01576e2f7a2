"""This file owns what one query's result is worth, under the metrics that mteb has for rankings.

Source: trec_eval, as mteb calls it; the mean over all queries is mteb's score (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Found = dict[str, float]
"""Scores by document."""
Truth = dict[str, int]
"""How relevant a document is; 0 is not."""


@dataclass(frozen=True)
class _Ranking:
    """A query's gains in the order found, and the best order there is."""

    gains: Sequence[int]
    ideal: Sequence[int]
    cut: int

    @property
    def places(self) -> list[int]:
        """Where relevant documents stand down to the cut, from 1."""
        return [place for place, gain in enumerate(self.gains[: self.cut], 1) if gain]

    @property
    def num_relevant(self) -> int:
        """How many there are; 1 where there is none, so that it can be divided by."""
        return max(len(self.ideal), 1)


def worth_of(metric: str) -> Callable[[Found, Truth], float] | None:
    """Return how a query is scored under a metric of mteb, ndcg_at_10; None if that is unknown."""
    name, _, cut = ("recall_at_1" if metric == "accuracy" else metric).partition("_at_")
    measure = _MEASURES.get(name)
    if measure is None or not cut.isdecimal() or int(cut) < 1:
        return None
    return lambda found, truth: measure(_ranked(found, truth, int(cut)))


def _ranked(found: Found, truth: Truth, cut: int) -> _Ranking:
    """Rank by score; ties by name, as trec_eval breaks them."""
    names = sorted(found, key=lambda name: (found[name], name), reverse=True)
    ideal = sorted((gain for gain in truth.values() if gain > 0), reverse=True)
    return _Ranking([max(truth.get(name, 0), 0) for name in names], ideal, cut)


def _ndcg(ranking: _Ranking) -> float:
    best = _discounted(ranking.ideal[: ranking.cut])
    return _discounted(ranking.gains[: ranking.cut]) / best if best else 0.0


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


def _average_precision(ranking: _Ranking) -> float:
    hits = enumerate(ranking.places, 1)
    return sum(count / place for count, place in hits) / ranking.num_relevant


_MEASURES: dict[str, Callable[[_Ranking], float]] = {
    "ndcg": _ndcg,
    "map": _average_precision,
    "recall": lambda ranking: len(ranking.places) / ranking.num_relevant,
    "precision": lambda ranking: len(ranking.places) / ranking.cut,
    "mrr": lambda ranking: 1 / ranking.places[0] if ranking.places else 0.0,
    "hit_rate": lambda ranking: float(bool(ranking.places)),
}
