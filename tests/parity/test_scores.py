"""Tests of nvembed_deploy/parity/scores.py: the items are those of the score, or there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from nvembed_deploy.parity.embedding import EmbeddingParity
from nvembed_deploy.parity.margins import MARGINS
from nvembed_deploy.parity.scores import TaskRun, count_rows, items_of
from nvembed_deploy.parity.verdict import TaskParity, compare_task, decide

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 200)


def run(kind: str, predictions: object, rows: object, metric: str, score: float) -> TaskRun:
    return TaskRun(
        name="t",
        kind=kind,
        metric=metric,
        instruction="",
        score=score,
        scores={"test": [{"hf_subset": "default"}]},
        predictions={"default": {"test": predictions}},
        dataset={"test": rows},
    )


def drawn(texts: int, **subsets: list[float]) -> TaskRun:
    """Return a clustering of `texts` texts in each subset, by the V-measures of its resamples."""
    scores = [{"hf_subset": n, "v_measures": {"Level 0": v}} for n, v in subsets.items()]
    rows = {"test": [{"sentences": str(i)} for i in range(texts)]}
    return TaskRun(
        name="t",
        kind="Clustering",
        metric="v_measure",
        instruction="",
        score=float(np.mean([np.mean(v) for v in subsets.values()])),
        scores={"test": scores},
        predictions={name: {"test": {}} for name in subsets},
        dataset=dict.fromkeys(subsets, rows),
    )


def ranked(metric: str, places: list[int], score: float) -> TaskRun:
    """Return a retrieval whose queries find their one document at these places, from 0."""
    found = {}
    for query, place in enumerate(places):
        names = [f"d{i}" for i in range(30)]
        names.insert(place, "right")
        found[f"q{query}"] = {name: -float(i) for i, name in enumerate(names)}
    rows = {"relevant_docs": {query: {"right": 1} for query in found}}
    return run("Retrieval", found, rows, metric, score)


def verdict(candidate: TaskRun, reference: TaskRun) -> TaskParity:
    return compare_task(candidate, reference, 0.005, 0)


def test_a_loss_in_any_subset_counts() -> None:
    same = [0.5 + 0.001 * i for i in range(10)]
    found = verdict(drawn(100, en=same, de=[v - 0.2 for v in same]), drawn(100, en=same, de=same))
    assert not found.passed
    assert found.interval is not None
    assert found.interval.low == pytest.approx(-0.1)
    assert "20 resamples of 200 texts" in found.reason


def test_the_sets_of_an_older_clustering_task_are_items_and_its_texts_are_counted() -> None:
    sets = {"test": [{"sentences": ["a", "b", "c"], "labels": [0, 1, 1]}] * 10}
    measures = [0.1 * i for i in range(10)]
    old = replace(
        drawn(1, default=measures),
        scores={"test": [{"hf_subset": "default", "v_measures": measures}]},
        dataset=sets,
    )
    items = items_of(old)
    assert items is not None
    assert items.described == "10 sets of 30 texts"
    assert count_rows(old) == 30


def test_too_few_sets_have_no_spread_that_could_be_trusted() -> None:
    few = drawn(100, default=[0.5] * 3)
    assert items_of(few) is None
    assert items_of(drawn(100, en=[0.5] * 10, de=[0.5] * 3)) is None
    assert "no items: the difference alone, of 100 rows" in verdict(few, few).reason


def test_f1_is_judged_on_f1() -> None:
    truth = np.repeat([0, 1, 2], [3800, 120, 80])
    worse = truth.copy()
    worse[-8:] = 0  # a tenth of the rarest label, one in 500 of the examples

    def predicted(labels: np.ndarray) -> TaskRun:
        score = f1_score(truth, labels, average="macro")
        rows = {"label": truth.tolist()}
        return run("Classification", [labels.tolist()], rows, "f1", score)

    found = verdict(predicted(worse), predicted(truth))
    assert not found.passed
    assert found.interval is not None
    assert found.interval.low < found.difference < found.interval.high < 0


@pytest.mark.parametrize(("metric", "score"), [("ndcg_at_1", 0.992), ("recall_at_1", 0.992)])
def test_a_retrieval_is_judged_on_its_own_metric(metric: str, score: float) -> None:
    found = verdict(ranked(metric, [0] * 992 + [1] * 8, score), ranked(metric, [0] * 1000, 1.0))
    assert not found.passed
    assert found.interval is not None
    assert found.interval.low < -0.008 < found.interval.high


def test_what_the_metric_does_not_see_does_not_count() -> None:
    found = verdict(ranked("recall_at_10", [3] * 100, 1.0), ranked("recall_at_10", [0] * 100, 1.0))
    assert found.passed
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "score"), [("paired_accuracy", 0.5), ("ndcg_at_10", 0.5)], ids=["unknown", "another"]
)
def test_where_the_items_are_not_of_the_score_the_difference_decides(
    metric: str, score: float
) -> None:
    reference = ranked(metric, [0] * 100, score)
    assert items_of(reference) is None
    found = verdict(replace(reference, score=score - 0.006), reference)
    assert (found.interval, found.passed, found.count) == (None, False, 100)
    assert "no items: the difference alone, of 100 rows" in found.reason
    assert verdict(replace(reference, score=score - 0.004), reference).passed


def test_sides_whose_items_differ_in_number_have_no_interval() -> None:
    def summarized(texts: int) -> TaskRun:
        pairs = [[1.0, 2.0, 3.0]] * texts
        predicted = {"cosine_scores": pairs, "human_scores": pairs}
        rows = [{"text": "a"}] * 30
        return run("Summarization", predicted, rows, "cosine_spearman", 1.0)

    assert verdict(summarized(30), summarized(30)).interval is not None
    assert verdict(summarized(29), summarized(30)).interval is None


@pytest.mark.parametrize("scores", [(np.nan, np.nan), (0.5, np.nan), (np.inf, 0.5)])
def test_a_score_that_is_not_defined_does_not_pass(scores: tuple[float, float]) -> None:
    pairs = {"cosine_scores": RNG.normal(size=30).tolist()}
    ours, theirs = (
        run("STS", pairs, {"score": [1.0] * 30}, "cosine_spearman", score) for score in scores
    )
    found = verdict(ours, theirs)
    assert not found.passed
    assert not found.is_defined
    assert "is not defined" in found.reason


def test_where_only_the_artifact_has_no_score_the_truth_is_not_blamed() -> None:
    embedding = EmbeddingParity(30, *[1.0] * 14, [], [])
    ours, theirs = (run("STS", {}, {}, "cosine_spearman", score) for score in (np.nan, 0.5))
    for reference, is_blamed in ((theirs, False), (ours, True)):
        decided = decide([verdict(ours, reference)], embedding, MARGINS["fp32"], "fp32")
        assert not decided.passed
        assert any("truth that differs" in cause for cause in decided.causes) == is_blamed


def test_a_loss_beyond_the_margin_does_not_pass_even_where_the_interval_would() -> None:
    """The items are the score to 0.001 alone, and of equal losses the interval has no width."""
    better = replace(drawn(100, en=[0.5] * 10), score=0.5009)
    found = verdict(replace(drawn(100, en=[0.496] * 10), score=0.4952), better)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(-0.004)
    assert not found.passed


def test_a_retrieval_by_instructions_has_items() -> None:
    found = replace(ranked("ndcg_at_20", [0] * 30, 1.0), kind="InstructionRetrieval")
    assert verdict(found, found).interval is not None


def test_only_queries_that_have_a_relevant_document_count() -> None:
    relevant = {f"q{i}": {"d": int(i < 4)} for i in range(30)}
    found = {query: {"d": 0.5} for query in relevant}
    asked = run("Retrieval", found, {"relevant_docs": relevant}, "ndcg_at_10", 4 / 30)
    judged = verdict(asked, asked)
    assert (judged.count, judged.is_too_small) == (4, True)
    assert count_rows(asked) == 4


def test_pairs_in_one_row_are_counted_one_by_one() -> None:
    rows = [{"sent1": ["a"] * 25, "sent2": ["b"] * 25, "labels": [1] * 25}]
    assert count_rows(run("PairClassification", {}, rows, "max_f1", 0.5)) == 25


@pytest.mark.parametrize(("metric", "expected"), [("max_ap", 1.0), ("max_accuracy", 1.0)])
def test_pairs_are_judged_by_either_metric(metric: str, expected: float) -> None:
    rows = {"labels": [0, 1] * 20}
    predicted = {"cosine_scores": [0.1, 0.9] * 20}
    items = items_of(run("PairClassification", predicted, rows, metric, expected))
    assert items is not None
    assert items.described == "40 pairs"
    assert items_of(run("PairClassification", predicted, rows, "max_f1", expected)) is None


def test_a_metric_of_the_cosine_is_not_judged_by_a_better_similarity() -> None:
    rows = {"labels": [0, 1] * 20}
    predicted = {"cosine_scores": [0.5] * 40, "manhattan_distances": [0.9, 0.1] * 20}
    items = items_of(run("PairClassification", predicted, rows, "cosine_ap", 0.5))
    assert items is not None
    assert items.score == 0.5


def test_classification_counts_each_example_over_all_experiments() -> None:
    predicted = [[0, 1, 1], [0, 0, 1]]
    items = items_of(run("Classification", predicted, {"label": [0, 1, 0]}, "accuracy", 0.5))
    assert items is not None
    assert items.parts[0].values.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "unknown",
    [
        run("BitextMining", [1], {}, "f1", 0.0),
        run("Classification", [[0, 1], [0]], {"label": [0, 1]}, "accuracy", 0.5),  # folds
        run("Classification", [[0, 1]], {"topic": [0, 1]}, "accuracy", 1.0),
        replace(run("STS", {}, {}, "cosine_spearman", 0.0), predictions={}),
    ],
    ids=["kind", "folds", "column", "no predictions"],
)
def test_data_of_another_shape_has_no_items(unknown: TaskRun) -> None:
    assert items_of(unknown) is None
