"""This file owns what examples themselves say of passages: relevant to a query, not, or neither.

Labels hold within one group: the same texts may have other labels in another set. A text may have
several. Legend: M passages, a number each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.data.rows import Row, label_of, labelled_negatives

Labels = frozenset[str]
_UNKNOWN = Labels()


class Relevance:
    """What the examples of one group say of its passages."""

    def __init__(
        self, rows: Iterable[Row], passages: Mapping[str, int], positives: Mapping[str, set[str]]
    ) -> None:
        """Collect the labels of all texts.

        Args:
            rows: the examples of the group.
            passages: its passages and their numbers, from 0 on.
            positives: those of each query.
        """
        self._positives = positives
        found: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            for text, label in _labelled(row):
                found[text].add(label)
        self._labels: dict[str, Labels] = {text: Labels(own) for text, own in found.items()}
        self._passages = passages
        by_label: dict[str, set[int]] = defaultdict(set)
        for text, number in passages.items():
            for label in self.labels(text):
                by_label[label].add(number)
        self._by_label = by_label
        self._is_labelled_M = np.array([bool(self.labels(text)) for text in passages], bool)
        self._alike: dict[Labels, NDArray[np.int64]] = {}

    def labels(self, text: str) -> Labels:
        """Return the labels of a text; none if they are not known."""
        return self._labels.get(text, _UNKNOWN)

    def label(self, text: str) -> str | None:
        """Return the label of a text; None if it has none or several."""
        own = self.labels(text)
        return next(iter(own)) if len(own) == 1 else None

    def alike(self, labels: Labels) -> NDArray[np.int64]:
        """Return the numbers of the passages that share a label, in order."""
        if labels not in self._alike:
            numbers = set().union(*(self._by_label[label] for label in labels))
            self._alike[labels] = np.array(sorted(numbers), np.int64)
        return self._alike[labels]

    def relevant(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the passages that are relevant to a query, in order.

        First those that share a label with it, then others: its positives and the query itself.
        """
        labels, named = self.labels(query), {query} | self._positives[query]
        others = [
            self._passages[text]
            for text in named & self._passages.keys()
            if labels.isdisjoint(self.labels(text))
        ]
        return self.alike(labels), np.array(sorted(others), np.int64)

    def are_others(self, query: str, numbers_K: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some passages are negatives by their labels: no score says otherwise.

        None of them may be relevant: what has labels then has others than the query.
        """
        return self._is_labelled_M[numbers_K] & bool(self.labels(query))


def _labelled(row: Row) -> list[tuple[str, str]]:
    """Return the texts of an example that have a label, with it."""
    label = label_of(row.get("label"))
    pairs = [(row["query"], label), (row["positive"], label), *labelled_negatives(row)]
    return [(text, label) for text, label in pairs if label is not None]
