"""This file owns a group of pairs: one task, source and instruction, with passages of its own.

The passages are its positives, the negatives that were given and what else the corpus holds.
Legend: N queries, M passages, D hidden, K nearest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.data.nearest import Search, nearest
from nvembed_deploy.train.data.relevance import Labels, Relevance
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.example import SYMMETRIC

GroupKey = tuple[str, str, str]
"""Task type, source and instruction."""


@dataclass
class Group:
    """Pairs that share passages."""

    task_type: str
    instruction: str
    queries: dict[str, list[int]] = field(default_factory=dict)
    """Each with the numbers of its rows."""
    passages: dict[str, int] = field(default_factory=dict)
    """Numbered."""

    @property
    def of_passages(self) -> str:
        """Return the instruction that passages carry: theirs where both sides are alike."""
        return self.instruction if self.task_type in SYMMETRIC else ""

    def add_passages(self, texts: Iterable[str]) -> None:
        """Number the texts that are new."""
        for text in texts:
            if text.strip():
                self.passages.setdefault(text, len(self.passages))


def groups_of(rows: Sequence[Row], corpus: Sequence[str]) -> list[Group]:
    """Sort pairs into groups; the corpus is part of each."""
    groups: dict[GroupKey, Group] = {}
    for number, row in enumerate(rows):
        task_type, instruction = row.get("task_type") or "retrieval", row.get("instruction") or ""
        key = task_type, str(row.get("source") or ""), instruction
        group = groups.setdefault(key, Group(task_type, instruction))
        group.queries.setdefault(row["query"], []).append(number)
        group.add_passages([row["positive"], *(row.get("negatives") or ())])
    for group in groups.values():
        group.add_passages(corpus)
    return list(groups.values())


@dataclass(frozen=True)
class Near:
    """Passages by number, the nearest first, and their scores."""

    numbers_K: NDArray[np.int64]
    scores_K: NDArray[np.float32]

    def before(self, other: Near) -> Near:
        """Return both, these first."""
        return Near(
            np.concatenate([self.numbers_K, other.numbers_K]),
            np.concatenate([self.scores_K, other.scores_K]),
        )


@dataclass(frozen=True)
class EmbeddedGroup:
    """A group, what is known of its texts, and their embeddings: rows of unit length."""

    group: Group
    known: Relevance
    query_ND: NDArray[np.float32]
    passage_MD: NDArray[np.float32]

    @cached_property
    def passages(self) -> list[str]:
        """Return the passages by number."""
        return list(self.group.passages)

    @cached_property
    def queries(self) -> list[str]:
        """Return the queries by number."""
        return list(self.group.queries)

    def nearest(self, depth: int) -> Iterator[tuple[int, Near]]:
        """Yield the number of each query and the `depth` nearest that share no label with it."""
        for search in self._searches(depth):
            for queries_N, best in nearest(self.query_ND, self.passage_MD, search):
                for query, scores_K, numbers_K in zip(queries_N, *best, strict=True):
                    is_unlike_K = np.ones(len(numbers_K), bool)
                    if search.passages is None:
                        alike = self.known.alike(self.known.labels(self.queries[query]))
                        is_unlike_K = ~np.isin(numbers_K, alike)
                    kept = np.flatnonzero(is_unlike_K)[:depth]
                    yield int(query), Near(numbers_K[kept], scores_K[kept])

    def _searches(self, depth: int) -> Iterator[Search]:
        """Yield searches that look beyond what shares a query's label.

        Where few passages do, all are searched, deeper by as many; where many do, the others alone.
        """
        by_labels: dict[Labels, list[int]] = defaultdict(list)
        for number, text in enumerate(self.queries):
            by_labels[self.known.labels(text)].append(number)
        everywhere: list[int] = []
        count, passages = depth, np.arange(len(self.passages))
        for labels, queries in by_labels.items():
            alike = self.known.alike(labels)
            if len(alike) <= depth:
                everywhere += queries
                count = max(count, depth + len(alike))
            else:
                others = np.setdiff1d(passages, alike, assume_unique=True)
                yield Search(np.array(queries), depth, others)
        if everywhere:
            yield Search(np.array(sorted(everywhere)), count)

    def scored(self, query: int, texts: Iterable[str]) -> Near:
        """Return some passages with their scores, the nearest first."""
        numbers_K = np.array([self.group.passages[text] for text in texts], np.int64)
        scores_K = self.passage_MD[numbers_K] @ self.query_ND[query]
        order_K = np.argsort(-scores_K, kind="stable")
        return Near(numbers_K[order_K], scores_K[order_K])
