"""This file owns the paired bootstrap: how sure the difference of two scores is.

Both models saw the same items, so items are drawn once and scored for both; what they have in
common cancels. Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3
(percentile interval).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvembed_deploy.parity.scores import Items
from nvembed_deploy.parity.statistic import Values

RESAMPLES = 2000
CONFIDENCE = 0.95
_BLOCK = 200
"""Resamples scored at a time, to bound memory."""


@dataclass(frozen=True)
class Interval:
    """Candidate minus reference: where the true difference lies with `CONFIDENCE`."""

    low: float
    high: float
    items: int
    unit: str


def paired_interval(candidate: Items, reference: Items, seed: int = 0) -> Interval:
    """Return the two-sided interval of the difference of scores.

    Items are drawn within their subset: a score is the mean over subsets, however large each is.

    Raises:
        ValueError: the two do not have the same items.
    """
    counts, others = ([len(part.values) for part in side.parts] for side in (reference, candidate))
    if counts != others:
        raise ValueError(f"{others} items against {counts}")
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(RESAMPLES // _BLOCK):
        differences.append(np.zeros(_BLOCK))
        for ours, theirs in zip(candidate.parts, reference.parts, strict=True):
            drawn_RN = _drawn(generator, len(theirs.values))
            differences[-1] += (
                ours.statistic(ours.values, drawn_RN) - theirs.statistic(theirs.values, drawn_RN)
            ) / len(counts)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Interval(float(low), float(high), sum(counts), candidate.unit)


def _drawn(generator: np.random.Generator, count: int) -> Values:
    """Return how often each of `count` items is in each of `_BLOCK` resamples of as many."""
    places_RN = generator.integers(0, count, (_BLOCK, count))
    counts_RN = [np.bincount(places_N, minlength=count) for places_N in places_RN]
    return np.array(counts_RN, np.float64)
