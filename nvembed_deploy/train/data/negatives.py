"""This file owns which near passages are hard negatives, and which are likely unlabelled positives.

Source: Moreira et al., NV-Retriever (arXiv 2407.15831), section 3: TopK, TopK-MarginPos and
TopK-PercPos. NV-Embed-v2 takes TopK-PercPos at 0.95.
Legend: K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError


class Rule(StrEnum):
    """How near a negative may come to the query."""

    PERC_POS = "perc-pos"
    """Up to `margin` times the positive's score."""
    MARGIN = "margin"
    """Up to the positive's score less `margin`."""
    TOP_K = "top-k"
    """As near as any."""


DEFAULT_MARGINS = {Rule.PERC_POS: 0.95, Rule.MARGIN: 0.05, Rule.TOP_K: 0.0}


@dataclass(frozen=True)
class Choice:
    """What is asked of negatives."""

    rule: Rule = Rule.PERC_POS
    margin: float = DEFAULT_MARGINS[Rule.PERC_POS]
    count: int = 7
    depth: int = 100
    """Passages a query that are looked at, beside those known to be relevant."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: the margin does not suit the rule, or the depth the count.
        """
        top = 1 if self.rule is Rule.PERC_POS else 2
        if not 0 <= self.margin <= top:
            raise InputError(
                f"margin is {self.margin}, expected 0 to {top} for {self.rule}",
                f"the usual is {DEFAULT_MARGINS[self.rule]}",
            )
        if self.depth <= self.count:
            raise InputError(
                f"depth is {self.depth}, expected more than the {self.count} negatives",
                "look at 100 or more",
            )

    def ceiling(self, positive: float) -> float:
        """Return the highest score of a negative beside a positive's score.

        The share is taken off the size of the score, so that a negative stays below a positive
        whose own score is below 0.
        """
        if self.rule is Rule.TOP_K:
            return float("inf")
        gap = self.margin if self.rule is Rule.MARGIN else (1 - self.margin) * abs(positive)
        return positive - gap


def choose(
    scores_K: NDArray[np.float32],
    ceiling_K: NDArray[np.float64],
    count: int,
) -> tuple[NDArray[np.int64], int]:
    """Choose the hardest negatives.

    Args:
        scores_K: of candidates, the best first.
        ceiling_K: the highest score each may have.
        count: how many.

    Returns:
        Places in `scores_K`, at most `count`, and how many candidates were rejected as likely
        positives.
    """
    is_low_K = scores_K <= ceiling_K
    return np.flatnonzero(is_low_K)[:count], int((~is_low_K).sum())
