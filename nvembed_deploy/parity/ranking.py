"""This file owns what each query's result is worth, under the metrics that mteb has for rankings.

Source: trec_eval, as mteb calls it; the mean over all queries is mteb's score (tested).
"""

from __future__ import annotations

from collections.abc import Mapping

Found = Mapping[str, Mapping[str, float]]
"""Scores by document, by query."""
Truth = Mapping[str, Mapping[str, int]]
"""How relevant a document is, by query; 0 is not."""

_MEASURES = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "recall": "recall",
    "precision": "P",
    "mrr": "recip_rank",
    "hit_rate": "success",
}
"""trec_eval's names. Its reciprocal rank has no cut."""


def worths(metric: str, found: Found, truth: Truth) -> list[float] | None:
    """Return each query's score under a metric of mteb, ndcg_at_10; None if that is unknown."""
    from pytrec_eval import RelevanceEvaluator

    name, _, cut = ("recall_at_1" if metric == "accuracy" else metric).partition("_at_")
    if name not in _MEASURES or not cut.isdecimal() or int(cut) < 1:
        return None
    measure = _MEASURES[name] if name == "mrr" else f"{_MEASURES[name]}.{cut}"
    scores = RelevanceEvaluator(truth, {measure}).evaluate(found)
    key = measure.replace(".", "_")
    values = [scores.get(query, {}).get(key, 0.0) for query in truth]
    if name == "mrr":
        return [value if value and round(1 / value) <= int(cut) else 0.0 for value in values]
    return values
