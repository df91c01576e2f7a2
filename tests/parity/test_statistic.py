"""Tests of nvembed_deploy/parity/statistic.py: against scipy, sklearn and mteb, ties too."""

from __future__ import annotations

import numpy as np
import pytest
from mteb.abstasks import AbsTaskPairClassification
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score

from nvembed_deploy.parity.statistic import (
    average_precision_of,
    best_accuracy_of,
    best_of,
    macro_f1_of,
    mean_of,
    score_of,
    spearman_of,
)

RNG = np.random.default_rng(0)
PLACES = RNG.integers(0, 40, (20, 40))
COUNTS = np.stack([np.bincount(places, minlength=40) for places in PLACES]).astype(float)
"""Resamples, and how often each item is in one."""
PAIRS = np.stack([np.round(RNG.normal(size=40), 1), RNG.integers(0, 2, 40)], axis=-1)
"""Predictions with ties, and what is true."""


def test_the_mean_is_of_each_resample() -> None:
    assert mean_of(np.array([1.0, 0.5, 0.0]), np.array([[1, 1, 1], [3, 0, 0]])).tolist() == [0.5, 1]


def test_spearman_of_resamples_is_scipys() -> None:
    values = np.round(RNG.normal(size=(40, 2)), 1)  # with ties
    expected = [spearmanr(*values[places].T).statistic for places in PLACES]
    assert np.allclose(spearman_of(values, COUNTS), expected)
    assert score_of(spearman_of, np.ones((4, 2))) == 0.0


def test_average_precision_of_resamples_is_sklearns() -> None:
    expected = [average_precision_score(PAIRS[p, 1], PAIRS[p, 0]) for p in PLACES]
    assert np.allclose(average_precision_of(PAIRS, COUNTS), expected)


def test_one_score_for_all_pairs_finds_nothing_however_they_are_ordered() -> None:
    pairs = np.stack([np.zeros(40), np.arange(40) < 20], axis=-1)
    assert score_of(average_precision_of, pairs) == 0.5
    assert score_of(average_precision_of, pairs[::-1]) == 0.5
    assert score_of(best_accuracy_of, pairs) == 0.0  # mteb's: no threshold at all


def test_the_best_accuracy_of_resamples_is_mtebs() -> None:
    found = best_accuracy_of(PAIRS, COUNTS)
    for accuracy, places in zip(found, PLACES, strict=True):
        expected, _ = AbsTaskPairClassification._find_best_acc_and_threshold(
            None, PAIRS[places, 0].tolist(), PAIRS[places, 1], True
        )
        assert accuracy == pytest.approx(expected)


def test_the_best_of_several_predictions_is_found_in_each_resample() -> None:
    """Of two predictions one is right at one half of the pairs, the other at the other."""
    truth = np.tile([0.0, 1.0], 20)
    half = np.arange(40) < 20
    values = np.stack([np.where(half, truth, 0.5), np.where(half, 0.5, truth), truth], axis=-1)
    counts = np.stack([half, ~half]).astype(float)
    assert best_of(average_precision_of)(values, counts).tolist() == [1.0, 1.0]
    assert average_precision_of(values[:, [0, 2]], counts)[1] < 0.6


def test_macro_f1_of_resamples_is_the_mean_of_sklearns() -> None:
    values = RNG.integers(0, 5, (40, 4)).astype(float)  # the label and three experiments
    values[values == 4] = 9
    values[0] = 7  # a label that many resamples do not have
    expected = [
        np.mean([f1_score(v[:, 0], v[:, i], average="macro") for i in (1, 2, 3)])
        for v in (values[places] for places in PLACES)
    ]
    assert np.allclose(macro_f1_of(values, COUNTS), expected)
