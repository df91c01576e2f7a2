"""Tests of nvembed_deploy/parity/scores.py: statistics against scipy, sklearn and hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score

from nvembed_deploy.parity.scores import (
    TaskRun,
    average_precision_of,
    items_of,
    mean_of,
    spearman_of,
)

RNG = np.random.default_rng(0)
PLACES = RNG.integers(0, 40, (5, 40))


def run(kind: str, predictions: object, dataset: object, metric: str = "x") -> TaskRun:
    return TaskRun("t", kind, metric, "", 0.0, {}, {"default": {"test": predictions}}, dataset)


def test_spearman_of_resamples_is_scipys() -> None:
    values = np.round(RNG.normal(size=(40, 2)), 1)  # with ties
    expected = [spearmanr(*values[places].T).statistic for places in PLACES]
    assert np.allclose(spearman_of(values, PLACES), expected)
    assert spearman_of(np.ones((4, 2)), np.arange(4)[None]) == [0.0]


def test_average_precision_of_resamples_is_sklearns() -> None:
    values = np.stack([RNG.normal(size=40), RNG.integers(0, 2, 40)], axis=-1)
    distinct = np.stack([RNG.permutation(40)[:30] for _ in range(5)])  # no ties among scores
    expected = [average_precision_score(values[p, 1], values[p, 0]) for p in distinct]
    assert np.allclose(average_precision_of(values, distinct), expected)


def test_ndcg_by_query_is_sklearns() -> None:
    documents = [f"d{i}" for i in range(30)]
    found = {d: float(s) for d, s in zip(documents, RNG.normal(size=30), strict=True)}
    truth = {d: int(RNG.integers(1, 3)) for d in documents[::4]}
    data = {"default": {"test": {"relevant_docs": {"q": truth}}}}
    items = items_of(run("Retrieval", {"q": found}, data, "ndcg_at_10"))
    assert items is not None
    gains = [[truth.get(d, 0) for d in documents]]
    expected = ndcg_score(gains, [[found[d] for d in documents]], k=10)
    assert items.values == pytest.approx([expected])


def test_a_query_without_result_is_worth_nothing() -> None:
    data = {"default": {"test": {"relevant_docs": {"q": {"d": 1}, "r": {"d": 1}}}}}
    for metric in ("ndcg_at_10", "map_at_1000"):
        items = items_of(run("Retrieval", {"q": {"d": 0.5}}, data, metric))
        assert items is not None
        assert items.values.tolist() == [1.0, 0.0]


def test_classification_counts_each_example_over_all_experiments() -> None:
    items = items_of(run("Classification", [[0, 1, 1], [0, 0, 1]], {"test": {"label": [0, 1, 0]}}))
    assert items is not None
    assert items.values.tolist() == [1.0, 0.5, 0.0]
    assert mean_of(items.values, np.array([[0, 1, 2]])).tolist() == [0.5]


def test_an_unknown_kind_has_no_items() -> None:
    assert items_of(run("BitextMining", [1], {})) is None
    assert items_of(TaskRun("t", "STS", "x", "", 0.0, {}, {}, {})) is None
