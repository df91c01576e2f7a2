"""This file owns a group of pairs: one task, source and instruction, with passages of its own.

The passages are its positives, the negatives that were given and what else the corpus holds.
Legend: N queries, M passages, D hidden, K nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.data.nearest import Near, nearest
from nvembed_deploy.train.data.relevance import Relevance
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
    num_alike: int = 0
    """So many passages, the last ones, are the first queries: embedded alike, so only once."""

    @property
    def of_passages(self) -> str:
        """Return the instruction that passages carry: theirs where both sides are alike."""
        return self.instruction if self.task_type in SYMMETRIC else ""

    def add_passages(self, texts: Iterable[str]) -> None:
        """Number the texts that are new."""
        for text in texts:
            if text.strip():
                self.passages.setdefault(text, len(self.passages))

    def overlap(self) -> None:
        """Put what is both last among passages and first among queries, if it is embedded alike."""
        if self.of_passages == self.instruction:
            both = [text for text in self.passages if text in self.queries]
            alone = [text for text in self.passages if text not in self.queries]
            self.passages = {text: number for number, text in enumerate([*alone, *both])}
            self.queries = {text: self.queries[text] for text in [*both, *self.queries]}
            self.num_alike = len(both)


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
        group.overlap()
    return list(groups.values())


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

    def nearest(self, depth: int) -> Iterator[Near]:
        """Yield the `depth` nearest passages of each query that are not known to be relevant."""
        return nearest(
            self.query_ND,
            self.passage_MD,
            depth,
            lambda query: self.known.relevant(self.queries[query]),
        )

    def scored(self, query: int, numbers: Sequence[int] | NDArray[np.int64]) -> Near:
        """Return some passages with their scores, the nearest first."""
        numbers_K = np.array(numbers, np.int64)
        scores_K = self.passage_MD[numbers_K] @ self.query_ND[query]
        order_K = np.argsort(-scores_K, kind="stable")
        return Near(numbers_K[order_K], scores_K[order_K])
