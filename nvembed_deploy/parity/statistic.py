"""This file owns how the values of many items make one score, for many resamples at a time.

A `Statistic` of all items is mteb's score of the task (tested). A resample is how often each item
was drawn, so items are put in order once, not once a resample. Shapes: N items, R resamples,
G groups of items of one value, E experiments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Statistic = Callable[[Values, Values], Values]
"""Given values [N] or [N, M] and how often each was drawn [R, N]: each resample's score, [R]."""


def score_of(statistic: Statistic, values: Values) -> float:
    """Return the score of all items, each drawn once."""
    return float(statistic(values, np.ones((1, len(values))))[0])


def mean_of(values: Values, counts_RN: Values) -> Values:
    """Score resamples by their mean."""
    means: Values = counts_RN @ values / counts_RN.sum(1)
    return means


def spearman_of(values: Values, counts_RN: Values) -> Values:
    """Score resamples of (prediction, truth) by Spearman's rank correlation."""
    one_RN, other_RN = (_centred_ranks(values[:, column], counts_RN) for column in range(2))
    spread_R = np.sqrt((counts_RN * one_RN**2).sum(1) * (counts_RN * other_RN**2).sum(1))
    return _divided((counts_RN * one_RN * other_RN).sum(1), spread_R)


def _centred_ranks(values_N: Values, counts_RN: Values) -> Values:
    """Return each item's rank in each resample less the mean rank; ties have their ranks' mean."""
    order_N, first_G = _groups(values_N)
    drawn_RG = np.add.reduceat(counts_RN[:, order_N], first_G, axis=1)
    rank_RG = drawn_RG.cumsum(1) - drawn_RG / 2 - counts_RN.sum(1, keepdims=True) / 2
    rank_RN = np.empty_like(counts_RN)
    rank_RN[:, order_N] = np.repeat(rank_RG, np.diff(first_G, append=len(values_N)), axis=1)
    return rank_RN


def average_precision_of(values: Values, counts_RN: Values) -> Values:
    """Score resamples of (prediction, 0 or 1) by average precision; ties are found together."""
    drawn_RG, hit_RG = _found(values, counts_RN)
    precision_RG = _divided(hit_RG.cumsum(1), drawn_RG.cumsum(1))
    return _divided((precision_RG * hit_RG).sum(1), hit_RG.sum(1))


def best_accuracy_of(values: Values, counts_RN: Values) -> Values:
    """Score resamples of (prediction, 0 or 1) by the accuracy at the best threshold.

    Source: mteb, `_find_best_acc_and_threshold`: some are above it and some below, never a part
    of a tie.
    """
    drawn_RG, hit_RG = _found(values, counts_RN)
    above_RG, total_R1 = drawn_RG.cumsum(1), drawn_RG.sum(1, keepdims=True)
    false_R1 = total_R1 - hit_RG.sum(1, keepdims=True)
    right_RG = 2 * hit_RG.cumsum(1) - above_RG + false_R1  # found, and left out rightly
    is_between_RG = (above_RG > 0) & (above_RG < total_R1)
    best: Values = np.where(is_between_RG, right_RG, 0.0).max(axis=1) / total_R1[:, 0]
    return best


def best_of(statistic: Statistic) -> Statistic:
    """Return the largest of a statistic of several predictions [N, M + 1], the truth being last."""

    def best(values: Values, counts_RN: Values) -> Values:
        columns = range(values.shape[1] - 1)
        each = [statistic(values[:, [column, -1]], counts_RN) for column in columns]
        largest: Values = np.max(each, axis=0)
        return largest

    return best


def _found(values: Values, counts_RN: Values) -> tuple[Values, Values]:
    """Return what was drawn of each prediction, from the highest down, and how many are true."""
    order_N, first_G = _groups(-values[:, 0])
    drawn_RN = counts_RN[:, order_N]
    hit_RN = drawn_RN * values[order_N, 1]
    return np.add.reduceat(drawn_RN, first_G, axis=1), np.add.reduceat(hit_RN, first_G, axis=1)


def _groups(values_N: Values) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return places in order of their values, and where in it each value is first."""
    order_N = np.argsort(values_N, kind="stable")
    sorted_N = values_N[order_N]
    return order_N, np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))


def macro_f1_of(values: Values, counts_RN: Values) -> Values:
    """Score resamples of (label, its prediction in each experiment) by macro F1.

    It is the mean over experiments of the mean over the labels that occur in one.
    """
    truth_N1, predicted_NE = values[:, :1], values[:, 1:]
    shape = (len(counts_RN), predicted_NE.shape[1])
    sum_RE, num_RE = np.zeros(shape), np.zeros(shape)
    for label in np.unique(values):
        is_truth_N1, is_predicted_NE = truth_N1 == label, predicted_NE == label
        hits_RE = counts_RN @ (is_truth_N1 & is_predicted_NE)
        both_RE = counts_RN @ (is_truth_N1.astype(np.float64) + is_predicted_NE)
        sum_RE += _divided(2 * hits_RE, both_RE)
        num_RE += both_RE > 0
    means: Values = (sum_RE / num_RE).mean(axis=1)
    return means


def _divided(above: Values, below: Values) -> Values:
    quotient: Values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
