"""This file owns how the values of many items make one score, for many resamples at a time.

A `Statistic` of all items is mteb's score of the task (tested).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Places = NDArray[np.int64]
Statistic = Callable[[Values, Places], Values]
"""Given values [N] or [N, M] and resampled places [R, N]: the score of each resample, [R]."""


def mean_of(values: Values, places_RN: Places) -> Values:
    """Score resamples by their mean."""
    means: Values = values[places_RN].mean(axis=1)
    return means


def spearman_of(values: Values, places_RN: Places) -> Values:
    """Score resamples of (prediction, truth) by Spearman's rank correlation."""
    from scipy.stats import rankdata

    drawn_RN2 = values[places_RN]
    ranks_RN2 = np.stack([rankdata(drawn_RN2[..., i], axis=1) for i in range(2)], axis=-1)
    centred = ranks_RN2 - ranks_RN2.mean(axis=1, keepdims=True)
    spread_R = np.sqrt((centred[..., 0] ** 2).sum(1) * (centred[..., 1] ** 2).sum(1))
    products_R = (centred[..., 0] * centred[..., 1]).sum(1)
    return _divided(products_R, spread_R)


def average_precision_of(values: Values, places_RN: Places) -> Values:
    """Score resamples of (prediction, 0 or 1) by average precision; ties are found together."""
    hit_RN, is_cut_RN = _sorted(values[places_RN])
    precision_RN = hit_RN.cumsum(1) / np.arange(1, hit_RN.shape[1] + 1)
    places = np.where(is_cut_RN, np.arange(hit_RN.shape[1]), hit_RN.shape[1])
    end_RN = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
    precision_RN = np.take_along_axis(precision_RN, end_RN, axis=1)
    return _divided((precision_RN * hit_RN).sum(1), hit_RN.sum(1))


def best_accuracy_of(values: Values, places_RN: Places) -> Values:
    """Score resamples of (prediction, 0 or 1) by the accuracy at the best threshold.

    Source: mteb, `_find_best_acc_and_threshold`: some are above it and some below, never a part
    of a tie.
    """
    hit_RN, is_cut_RN = _sorted(values[places_RN])
    above_RN = hit_RN.cumsum(1)
    misses_RN = np.arange(1, hit_RN.shape[1] + 1) - above_RN
    below_RN = (1 - hit_RN).sum(1, keepdims=True) - misses_RN
    right_RN = np.where(is_cut_RN, above_RN + below_RN, 0.0)[:, :-1]
    best: Values = right_RN.max(axis=1, initial=0.0) / hit_RN.shape[1]
    return best


def best_of(statistic: Statistic) -> Statistic:
    """Return the largest of a statistic of several predictions [N, M + 1], the truth being last."""

    def best(values: Values, places_RN: Places) -> Values:
        columns = range(values.shape[1] - 1)
        each = [statistic(values[:, [column, -1]], places_RN) for column in columns]
        largest: Values = np.max(each, axis=0)
        return largest

    return best


def _sorted(drawn_RN2: Values) -> tuple[Values, NDArray[np.bool_]]:
    """Return what is true from the highest prediction down, and where the next one is lower."""
    order_RN = np.argsort(-drawn_RN2[..., 0], axis=1, kind="stable")
    found_RN, hit_RN = (np.take_along_axis(drawn_RN2[..., i], order_RN, axis=1) for i in range(2))
    is_cut_RN = np.ones(hit_RN.shape, bool)
    is_cut_RN[:, :-1] = found_RN[:, :-1] != found_RN[:, 1:]
    return hit_RN, is_cut_RN


def macro_f1_of(values: Values, places_RN: Places) -> Values:
    """Score resamples of (label, its prediction in each experiment) by macro F1, their mean."""
    labels, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(values.shape)
    return np.array([_macro_f1(codes[places_N], len(labels)) for places_N in places_RN])


def _macro_f1(codes: NDArray[np.int64], num_labels: int) -> float:
    """Return the mean over experiments of the mean over the labels that occur in one."""
    truth_N1, predicted_NE = codes[:, :1], codes[:, 1:]
    apart_E = num_labels * np.arange(predicted_NE.shape[1])
    shape = (len(apart_E), num_labels)

    def counted(places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(places.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

    hits_EC = counted((predicted_NE + apart_E)[predicted_NE == truth_N1])
    both_EC = counted(predicted_NE + apart_E) + counted(truth_N1 + apart_E)
    f1_EC = _divided((2 * hits_EC).astype(np.float64), both_EC.astype(np.float64))
    return float((f1_EC.sum(1) / (both_EC > 0).sum(1)).mean())


def _divided(above: Values, below: Values) -> Values:
    quotient: Values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient
