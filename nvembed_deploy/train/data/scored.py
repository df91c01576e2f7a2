"""This file owns examples made of scored sentence pairs (semantic textual similarity).

Source: arXiv 2405.17428: pairs from score 4 on, in both directions; negatives are the texts nearest
by BM25 whose score with the query is not above 2.5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nvembed_deploy.train.data.bm25 import Bm25
from nvembed_deploy.train.data.plan import SourcePlan
from nvembed_deploy.train.data.rows import Faults, Placed, text_fault
from nvembed_deploy.train.data.words import normal

_SCALE = 5.0


@dataclass(frozen=True)
class Scored:
    """Two texts, how alike they are from 0 to 5, and the place they were read at."""

    place: str
    first: str
    second: str
    score: float


def read_scored(rows: Iterable[Placed], plan: SourcePlan, faults: Faults) -> Iterator[Scored]:
    """Yield the sentence pairs of a source; empty texts and impossible scores are faults."""
    keys = [plan.column(key) for key in ("sentence1", "sentence2", "score")]
    for place, row in rows:
        first, second, score = (row.get(key) for key in keys)
        fault = text_fault(keys[0], first) or text_fault(keys[1], second)
        if fault is None and not _is_score(score, plan.top_score):
            fault = f"{keys[2]} is {score!r:.60}, expected 0 to {plan.top_score:g}"
        if fault is not None:
            faults.add(place, fault)
            continue
        assert isinstance(first, str)
        assert isinstance(second, str)
        yield Scored(place, first, second, float(score or 0) * _SCALE / plan.top_score)


def _is_score(score: object, top: float) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= top


def both_directions(pairs: Sequence[Scored], plan: SourcePlan) -> Iterator[Placed]:
    """Yield each similar pair twice, once from either side, with hard negatives.

    Negatives are drawn from all texts of the source, save those that have the words of the query or
    of the positive, in that order: other cases and full stops make no other sentence.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    numbers = {text: number for number, text in enumerate(texts)}
    too_alike = _too_alike(pairs, plan.max_negative_score)
    index = Bm25(texts) if plan.negatives else None
    same: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        same[normal(text)].add(text)
    for pair in pairs:
        if pair.score < plan.min_score:
            continue
        for query, positive in ((pair.first, pair.second), (pair.second, pair.first)):
            alike = too_alike[query] | same[normal(query)] | same[normal(positive)]
            best = index.best(numbers[query], plan.negatives + len(alike)) if index else []
            negatives = [texts[i] for i in best if texts[i] not in alike][: plan.negatives]
            yield pair.place, {"query": query, "positive": positive, "negatives": negatives}


def _too_alike(pairs: Sequence[Scored], limit: float) -> dict[str, set[str]]:
    """Return for each text those that are known to be no negatives of it."""
    alike: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        if pair.score > limit:
            alike[pair.first].add(pair.second)
            alike[pair.second].add(pair.first)
    return alike
