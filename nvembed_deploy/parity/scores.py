"""This file owns a task's result, item by item: what each query, pair or example is worth.

mteb gives one number a task; whether two numbers differ needs the values behind them. They are
taken from mteb's own predictions, and their statistic is mteb's main score again (tested).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvembed_deploy.parity.ranking import worths
from nvembed_deploy.parity.statistic import (
    Statistic,
    Values,
    average_precision_of,
    best_accuracy_of,
    best_of,
    macro_f1_of,
    mean_of,
    score_of,
    spearman_of,
)

_LEAST_DRAWN = 10
"""Fewest resamples or sets whose spread says anything: mteb draws as many."""
_ROUNDED = 1e-3
"""How far a main score may be from its items' statistic. mteb rounds to 5 decimals; a metric that
takes the best of several similarities may be of another than the cosine."""


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
class Part:
    """Values of a subset's items, and how they make its score. `unit` says what an item is.

    `num_judged`, where not all of the values are something judged, is how many things are: texts
    of which the values are resamples, or queries that have a relevant document.
    """

    values: Values
    statistic: Statistic
    unit: str
    num_judged: int | None = None


@dataclass(frozen=True)
class Items:
    """All that a task's score rests on: the mean over subsets, as mteb's is."""

    parts: tuple[Part, ...]

    @property
    def unit(self) -> str:
        """What an item is."""
        return self.parts[0].unit

    @property
    def num_values(self) -> int:
        """How many values are resampled."""
        return sum(len(part.values) for part in self.parts)

    @property
    def count(self) -> int:
        """How many things were judged: however often a few are resampled, they stay few."""
        return sum(
            len(part.values) if part.num_judged is None else part.num_judged for part in self.parts
        )

    @property
    def score(self) -> float:
        """The statistic of all items."""
        return float(np.mean([score_of(part.statistic, part.values) for part in self.parts]))

    @property
    def described(self) -> str:
        """The number of values, in words."""
        if self.unit in _DRAWN:
            return f"{self.num_values} {self.unit} of {self.count} texts"
        return f"{self.count} {self.unit}"


_DRAWN = {"resamples", "sets"}
"""Units that are many texts each."""


def items_of(run: TaskRun) -> Items | None:
    """Return the items behind a score; None where its metric, or mteb's data, are not known here.

    So they are, too, where the items' statistic is not the score: an interval would be of something
    else.
    """
    read = _READERS.get(run.kind)
    if read is None:
        return None
    parts = []
    try:
        for split, subsets in run.scores.items():
            for scores in subsets:
                subset = scores["hf_subset"]
                rows = _data(run.dataset, subset)[split]
                parts.append(read(run.metric, scores, run.predictions[subset][split], rows))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None  # a task of mteb's with columns of its own
    known = [part for part in parts if part is not None and len(part.values)]
    if not known or len(known) < len(parts):
        return None
    items = Items(tuple(known))
    return items if abs(items.score - run.score) <= _ROUNDED else None


def count_rows(run: TaskRun) -> int:
    """Return how many texts or queries a score rests on; 0 where they cannot be counted."""
    try:
        return sum(
            _num_rows(_data(run.dataset, found["hf_subset"])[split])
            for split, subsets in run.scores.items()
            for found in subsets
        )
    except (AttributeError, KeyError, TypeError):
        return 0


def _num_rows(rows: Any) -> int:  # noqa: ANN401 - a Dataset, or the tables of a retrieval
    if isinstance(rows, dict):
        return sum(map(_has_relevant, rows["relevant_docs"].values()))
    return sum(_num_texts(row) for row in rows)


def _num_texts(row: dict[str, Any]) -> int:
    """Return how many texts or pairs are in a row: of mteb's older data there are many in one."""
    found = row.get("sentences", row.get("sentence1", row.get("sent1")))
    return len(found) if isinstance(found, list) else 1


def _has_relevant(truth: dict[str, int]) -> bool:
    return any(gain > 0 for gain in truth.values())


def _data(dataset: Any, subset: str) -> Any:  # noqa: ANN401 - mteb's nesting
    return dataset.get(subset, dataset)


Reader = Callable[[str, Any, Any, Any], Part | None]
"""Given a metric, mteb's scores of a subset, its predictions and its rows: the values."""


def _retrieval(metric: str, _: Any, predicted: Any, rows: Any) -> Part | None:  # noqa: ANN401
    relevant = rows["relevant_docs"]
    values = worths(metric, predicted, relevant)
    if values is None:
        return None
    num_judged = sum(map(_has_relevant, relevant.values()))
    return Part(np.array(values, np.float64), mean_of, "queries", num_judged)


def _sts(_: str, __: Any, predicted: Any, rows: Any) -> Part:  # noqa: ANN401
    truth = np.array(rows["score"], np.float64)
    values = np.stack([np.array(predicted["cosine_scores"], np.float64), truth], axis=-1)
    return Part(values, spearman_of, "pairs")


_SIMILARITIES = {
    "cosine_scores": 1,
    "dot_scores": 1,
    "similarity_scores": 1,
    "euclidean_distances": -1,
    "manhattan_distances": -1,
}
"""mteb's predictions of a pair, and which end is alike."""


def _pairs(metric: str, _: Any, predicted: Any, rows: Any) -> Part | None:  # noqa: ANN401
    """Return each pair's similarity; of `max_...` all there are, of which the best one counts."""
    is_best = metric.startswith("max_")
    statistic = {"ap": average_precision_of, "accuracy": best_accuracy_of}.get(
        metric.removeprefix("max_").removeprefix("cosine_")
    )
    if statistic is None:
        return None
    columns = rows.column_names if hasattr(rows, "column_names") else list(rows)
    truth = np.array(rows["labels" if "labels" in columns else "label"], np.float64).ravel()
    found = [
        sign * np.array(predicted[name], np.float64).ravel()
        for name, sign in _SIMILARITIES.items()
        if name in predicted and (is_best or name == "cosine_scores")
    ]
    return Part(np.stack([*found, truth], axis=-1), best_of(statistic), "pairs")


def _classification(metric: str, _: Any, predicted: Any, rows: Any) -> Part | None:  # noqa: ANN401
    truth_N = np.array(rows["label"])
    predicted_NE = np.array(predicted).T
    if metric == "accuracy":
        right_NE = np.equal(predicted_NE, truth_N[:, None]).astype(np.float64)
        return Part(right_NE.mean(axis=1), mean_of, "examples")
    if metric != "f1":
        return None
    both = np.concatenate([truth_N[:, None], predicted_NE], axis=1)
    _, codes = np.unique(both, return_inverse=True)
    return Part(codes.reshape(both.shape).astype(np.float64), macro_f1_of, "examples")


def _clustering(metric: str, scores: Any, _: Any, rows: Any) -> Part | None:  # noqa: ANN401
    """Return the V-measures of mteb's seeded resamples, which are the same for both models.

    Of mteb's older tasks they are of the sets that its data are divided into.
    """
    found = scores["v_measures" if metric == "v_measure" else f"{metric}_scores"]
    drawn = list(found.values()) if isinstance(found, dict) else [found]
    values = np.concatenate([np.array(v, np.float64) for v in drawn])
    if len(values) < _LEAST_DRAWN:
        return None
    unit = "resamples" if isinstance(found, dict) else "sets"
    return Part(values, mean_of, unit, _num_rows(rows))


def _summarization(_: str, __: Any, predicted: Any, ___: Any) -> Part:  # noqa: ANN401
    values = []
    for found, truth in zip(predicted["cosine_scores"], predicted["human_scores"], strict=True):
        pairs = np.stack([np.array(found, float), np.array(truth, float)], axis=-1)
        values.append(score_of(spearman_of, pairs))
    return Part(np.array(values), mean_of, "texts")


_READERS: dict[str, Reader] = {
    "Retrieval": _retrieval,
    "Reranking": _retrieval,
    "InstructionRetrieval": _retrieval,
    "STS": _sts,
    "PairClassification": _pairs,
    "Classification": _classification,
    "Clustering": _clustering,
    "Summarization": _summarization,
}
