"""This file owns the paired bootstrap: how sure the difference of two scores is.

Both models saw the same items, so places are drawn once and scored for both; what the items have
in common cancels. Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3
(percentile interval).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvembed_deploy.parity.scores import Items

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

    Raises:
        ValueError: the two do not have the same items.
    """
    count = len(reference.values)
    if len(candidate.values) != count:
        raise ValueError(f"{len(candidate.values)} items against {count}")
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(RESAMPLES // _BLOCK):
        places_RN = generator.integers(0, count, (_BLOCK, count))
        differences.append(
            candidate.statistic(candidate.values, places_RN)
            - reference.statistic(reference.values, places_RN)
        )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Interval(float(low), float(high), count, candidate.unit)
