"""Tests of nvembed_deploy/parity/ranking.py: each query's worth against mteb's own metrics."""

from __future__ import annotations

import numpy as np
import pytest
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, make_score_dict

from nvembed_deploy.parity.ranking import worths

CUTS = (1, 3, 5, 10, 20, 100, 1000)
RNG = np.random.default_rng(0)
DOCUMENTS = [f"d{i}" for i in range(150)]
FOUND = {
    f"q{q}": {d: float(s) for d, s in zip(DOCUMENTS, RNG.normal(size=150).round(1), strict=True)}
    for q in range(12)
}
"""Scores with many ties."""
TRUTH = {
    query: {d: int(RNG.integers(0, 4)) for d in RNG.choice(DOCUMENTS, 1 + 5 * place)}
    for place, query in enumerate(FOUND)
}
EXPECTED = make_score_dict(
    **dict(
        zip(
            ("ndcg", "_map", "recall", "precision", "naucs", "mrr", "naucs_mrr", "hit_rate"),
            calculate_retrieval_scores(FOUND, TRUTH, CUTS)[1:],
            strict=True,
        )
    ),
    task_scores={},
)


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        *(
            f"{name}_at_{cut}"
            for name in ("ndcg", "map", "recall", "precision", "mrr", "hit_rate")
            for cut in CUTS
        ),
    ],
)
def test_the_mean_of_the_queries_is_mtebs_score(metric: str) -> None:
    values = worths(metric, FOUND, TRUTH)
    assert values is not None
    assert len(values) == len(FOUND)
    assert np.mean(values) == pytest.approx(EXPECTED[metric], abs=1e-5)


@pytest.mark.parametrize("metric", ["ndcg_at_10", "map_at_1000", "recall_at_1", "mrr_at_10"])
def test_a_query_without_result_or_without_truth_is_worth_nothing(metric: str) -> None:
    found = {"right": {"d": 0.5}, "empty": {}, "without truth": {"d": 0.5}}
    truth = {"right": {"d": 1}, "empty": {"d": 1}, "without truth": {"d": 0}, "lost": {"d": 1}}
    assert worths(metric, found, truth) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "metric", ["max_over_subqueries_map_at_1000", "paired_accuracy", "ndcg_at_all", "ndcg_at_0"]
)
def test_an_unknown_metric_is_not_guessed(metric: str) -> None:
    assert worths(metric, FOUND, TRUTH) is None
