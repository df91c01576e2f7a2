"""This file owns a task's result, item by item: what each query, pair or example is worth.

mteb gives one number a task; whether two numbers differ needs the values behind them. They are
taken from mteb's own predictions, and their statistic is mteb's main score again (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Statistic = Callable[[Values, NDArray[np.int64]], Values]
"""Given values [N] or [N, 2] and resampled places [R, N]: the score of each resample, [R]."""
_CUT = 10


@dataclass(frozen=True)
class TaskRun:
    """What mteb returned for one model on one task."""

    name: str
    kind: str
    metric: str
    instruction: str
    score: float
    scores: Any
    predictions: dict[str, Any]
    dataset: Any


@dataclass(frozen=True)
class Items:
    """Values of a task's items, and how they make its score. `unit` says what an item is.

    `texts`, where the values are resamples, is how many texts were resampled.
    """

    values: Values
    statistic: Statistic
    unit: str
    texts: int | None = None

    @property
    def count(self) -> int:
        """How many things were judged: however often a few are resampled, they stay few."""
        return len(self.values) if self.texts is None else self.texts

    @property
    def described(self) -> str:
        """The number of values, in words."""
        drawn = "" if self.texts is None else f" of {self.texts} texts"
        return f"{len(self.values)} {self.unit}{drawn}"


def items_of(run: TaskRun) -> Items | None:
    """Return the items behind a score; None for a kind of task whose predictions are not known."""
    read = _READERS.get(run.kind)
    if read is None or not run.predictions:
        return None
    parts = [
        read(run, split, run.predictions[subset][split], _data(run.dataset, subset))
        for subset in run.predictions
        for split in run.predictions[subset]
    ]
    if any(part.unit != parts[0].unit for part in parts):
        return None
    texts = None if parts[0].texts is None else sum(part.texts or 0 for part in parts)
    values = np.concatenate([part.values for part in parts])
    return Items(values, parts[0].statistic, parts[0].unit, texts)


def count_rows(run: TaskRun) -> int:
    """Return how many rows of data a score rests on; 0 where they cannot be counted."""
    try:
        return sum(
            _num_rows(_data(run.dataset, found["hf_subset"])[split])
            for split, subsets in run.scores.items()
            for found in subsets
        )
    except (AttributeError, KeyError, TypeError):
        return 0


def _num_rows(rows: Any) -> int:  # noqa: ANN401 - a Dataset, or the tables of a retrieval
    return len(rows["queries"] if isinstance(rows, dict) else rows)


def _data(dataset: Any, subset: str) -> Any:  # noqa: ANN401 - mteb's nesting
    return dataset.get(subset, dataset)


def mean_of(values: Values, places_RN: NDArray[np.int64]) -> Values:
    """Score resamples by their mean."""
    means: Values = values[places_RN].mean(axis=1)
    return means


def spearman_of(values: Values, places_RN: NDArray[np.int64]) -> Values:
    """Score resamples of (prediction, truth) by Spearman's rank correlation."""
    from scipy.stats import rankdata

    drawn_RN2 = values[places_RN]
    ranks_RN2 = np.stack([rankdata(drawn_RN2[..., i], axis=1) for i in range(2)], axis=-1)
    centred = ranks_RN2 - ranks_RN2.mean(axis=1, keepdims=True)
    spread_R = np.sqrt((centred[..., 0] ** 2).sum(1) * (centred[..., 1] ** 2).sum(1))
    products_R = (centred[..., 0] * centred[..., 1]).sum(1)
    return _divided(products_R, spread_R)


def average_precision_of(values: Values, places_RN: NDArray[np.int64]) -> Values:
    """Score resamples of (prediction, 0 or 1) by average precision."""
    drawn_RN2 = values[places_RN]
    order_RN = np.argsort(-drawn_RN2[..., 0], axis=1, kind="stable")
    hit_RN = np.take_along_axis(drawn_RN2[..., 1], order_RN, axis=1)
    precision_RN = hit_RN.cumsum(1) / np.arange(1, hit_RN.shape[1] + 1)
    count_R = hit_RN.sum(1)
    total_R = (precision_RN * hit_RN).sum(1)
    return _divided(total_R, count_R)


def _divided(above: Values, below: Values) -> Values:
    quotient: Values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient


def _retrieval(run: TaskRun, split: str, predicted: Any, data: Any) -> Items:  # noqa: ANN401
    relevant = data[split]["relevant_docs"]
    worth = _ndcg if run.metric.startswith("ndcg") else _precision
    values = [worth(predicted.get(query, {}), truth) for query, truth in relevant.items()]
    return Items(np.array(values), mean_of, "queries")


def _ranked(found: dict[str, float], truth: dict[str, int]) -> list[int]:
    """Return gains in the order found; ties by name, as trec_eval breaks them."""
    names = sorted(found, key=lambda name: (found[name], name), reverse=True)
    return [truth.get(name, 0) for name in names]


def _ndcg(found: dict[str, float], truth: dict[str, int]) -> float:
    gains = _ranked(found, truth)[:_CUT]
    ideal = sorted(truth.values(), reverse=True)[:_CUT]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


def _precision(found: dict[str, float], truth: dict[str, int]) -> float:
    hits, total = 0, 0.0
    for place, gain in enumerate(_ranked(found, truth), 1):
        if gain > 0:
            hits += 1
            total += hits / place
    return total / max(sum(gain > 0 for gain in truth.values()), 1)


def _sts(_: TaskRun, split: str, predicted: Any, data: Any) -> Items:  # noqa: ANN401
    truth = np.array(data[split]["score"], np.float64)
    return Items(
        np.stack([np.array(predicted["cosine_scores"]), truth], axis=-1), spearman_of, "pairs"
    )


def _pair(_: TaskRun, split: str, predicted: Any, data: Any) -> Items:  # noqa: ANN401
    rows = data[split]
    columns = rows.column_names if hasattr(rows, "column_names") else list(rows)
    truth = np.array(rows["labels" if "labels" in columns else "label"], np.float64).ravel()
    found = np.array(predicted["cosine_scores"], np.float64).ravel()
    return Items(np.stack([found, truth], axis=-1), average_precision_of, "pairs")


def _classification(_: TaskRun, split: str, predicted: Any, data: Any) -> Items:  # noqa: ANN401
    truth_N = np.array(data[split]["label"])
    right_EN = np.array([np.array(p) == truth_N for p in predicted], np.float64)
    return Items(right_EN.mean(axis=0), mean_of, "examples")


def _clustering(run: TaskRun, split: str, _: Any, data: Any) -> Items:  # noqa: ANN401
    """Return the V-measures of mteb's seeded resamples, which are the same for both models."""
    levels = run.scores[split][0]["v_measures"]
    values = np.concatenate([np.array(v) for v in levels.values()])
    return Items(values, mean_of, "resamples", len(data[split]))


def _summarization(_: TaskRun, __: str, predicted: Any, ___: Any) -> Items:  # noqa: ANN401
    values = []
    for found, truth in zip(predicted["cosine_scores"], predicted["human_scores"], strict=True):
        pairs = np.stack([np.array(found, float), np.array(truth, float)], axis=-1)
        values.append(float(spearman_of(pairs, np.arange(len(pairs))[None])[0]))
    return Items(np.array(values), mean_of, "texts")


_READERS: dict[str, Callable[[TaskRun, str, Any, Any], Items]] = {
    "Retrieval": _retrieval,
    "Reranking": _retrieval,
    "STS": _sts,
    "PairClassification": _pair,
    "Classification": _classification,
    "Clustering": _clustering,
    "Summarization": _summarization,
}
