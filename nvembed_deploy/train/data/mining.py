"""This file owns mining: pairs in, the same pairs with hard negatives found by a teacher out.

Pairs of one task, source and instruction are a group. Its passages are its positives, the negatives
that were given and what else the corpus holds; negatives come from the same group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.data.embeddings import EmbeddingStore
from nvembed_deploy.train.data.nearest import nearest
from nvembed_deploy.train.data.negatives import Choice, choose
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.example import SYMMETRIC

GroupKey = tuple[str, str, str]
"""Task type, source and instruction."""


@dataclass
class Group:
    """Pairs that share passages: the numbers of their rows, and the passages by number."""

    task_type: str
    instruction: str
    rows: list[int] = field(default_factory=list)
    passages: dict[str, int] = field(default_factory=dict)

    def add_passages(self, texts: Iterable[str]) -> None:
        """Number the texts that are new."""
        for text in texts:
            if text.strip():
                self.passages.setdefault(text, len(self.passages))


@dataclass
class MiningReport:
    """What mining found. Counts are of (row, passage) unless they say rows."""

    rows: int = 0
    passages: int = 0
    negatives: int = 0
    known_relevant: int = 0
    """Passed over: positives of the same query, texts of the same label, the query itself."""
    rejected: int = 0
    """False negatives, as far as the rule tells: too near to the query beside its positive."""
    rows_with_rejected: int = 0
    rows_short: int = 0
    """With fewer negatives than asked for."""
    rows_positive_first: int = 0
    """The teacher ranks no candidate above the positive."""

    def lines(self) -> list[str]:
        """Return what a person wants to read."""
        share = 100 / max(self.rows, 1)
        return [
            f"{counted(self.rows, 'row')}, {counted(self.passages, 'passage')}, "
            f"{counted(self.negatives, 'negative')}",
            f"rejected as false negatives: {counted(self.rejected, 'candidate')} in "
            f"{counted(self.rows_with_rejected, 'row')} ({self.rows_with_rejected * share:.1f}%)",
            f"passed over as known to be relevant: {counted(self.known_relevant, 'candidate')}",
            f"positive above all candidates: {self.rows_positive_first * share:.1f}% of rows",
            f"fewer negatives than asked for: {counted(self.rows_short, 'row')}",
        ]


class Miner:
    """Mines the groups of a set of pairs."""

    def __init__(self, rows: Sequence[Row], choice: Choice, corpus: Iterable[str] = ()) -> None:
        """Sort pairs into groups.

        Args:
            rows: examples, as `read_pairs` yields them.
            choice: which candidates are taken.
            corpus: further passages, for all groups.
        """
        self._rows = rows
        self._choice = choice
        self.report = MiningReport(rows=len(rows))
        self._groups = _groups(rows, list(corpus))
        self._relevant: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._labels: dict[str, str] = {}
        for row in rows:
            self._relevant[row.get("instruction") or "", row["query"]].add(row["positive"])
            if row.get("label") is not None:
                self._labels[row["query"]] = self._labels[row["positive"]] = str(row["label"])

    @property
    def num_texts(self) -> int:
        """Return how many texts are embedded in all."""
        return sum(len(group.passages) + len(_queries(group, self._rows)) for group in self._groups)

    def mine(
        self, store: EmbeddingStore, advance: Callable[[int], None] = lambda _: None
    ) -> Iterator[Row]:
        """Yield the rows in their order with mined negatives in place of their own.

        `negative_scores` and `positive_score` are the teacher's. Embeddings that the store has are
        not computed again.
        """
        mined: dict[int, Row] = {}
        for group in self._groups:
            self.report.passages += len(group.passages)
            mined.update(self._mine(group, store, advance))
        for number in range(len(self._rows)):
            yield mined.pop(number)

    def _mine(
        self, group: Group, store: EmbeddingStore, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Row]]:
        passages = list(group.passages)
        both = group.instruction if group.task_type in SYMMETRIC else ""
        passage_MD = store.embed(passages, instruction=both, advance=advance)
        queries = _queries(group, self._rows)
        query_ND = store.embed(list(queries), instruction=group.instruction, advance=advance)
        by_query = defaultdict(list)
        for number in group.rows:
            by_query[queries[self._rows[number]["query"]]].append(number)
        for start, (scores_NK, numbers_NK) in nearest(query_ND, passage_MD, self._choice.depth):
            for place in range(len(scores_NK)):
                found = [passages[i] for i in numbers_NK[place]]
                for number in by_query[start + place]:
                    row = self._rows[number]
                    at = group.passages[row["positive"]]
                    positive = float(query_ND[start + place] @ passage_MD[at])
                    yield number, self._with_negatives(row, found, scores_NK[place], positive)

    def _with_negatives(
        self, row: Row, found: list[str], scores_K: NDArray[np.float32], positive: float
    ) -> Row:
        is_candidate_K = np.array([not self._is_relevant(row, text) for text in found])
        ceiling = self._choice.ceiling(positive)
        ceiling_K = np.array([inf if self._is_other(row, text) else ceiling for text in found])
        chosen, rejected = choose(scores_K, is_candidate_K, ceiling_K, self._choice.count)
        report = self.report
        report.negatives += len(chosen)
        report.known_relevant += int((~is_candidate_K).sum())
        report.rejected += rejected
        report.rows_with_rejected += rejected > 0
        report.rows_short += len(chosen) < self._choice.count
        report.rows_positive_first += not (scores_K[is_candidate_K] > positive).any()
        return {
            **{key: value for key, value in row.items() if key != "negative_labels"},
            "negatives": [found[i] for i in chosen],
            "positive_score": round(positive, 4),
            "negative_scores": [round(float(scores_K[i]), 4) for i in chosen],
        }

    def _is_relevant(self, row: Row, text: str) -> bool:
        if (
            text == row["query"]
            or text in self._relevant[row.get("instruction") or "", row["query"]]
        ):
            return True
        label = row.get("label")
        return label is not None and self._labels.get(text) == str(label)

    def _is_other(self, row: Row, text: str) -> bool:
        """Return whether the labels say that it is a negative: then no score says otherwise."""
        label = row.get("label")
        return label is not None and self._labels.get(text, str(label)) != str(label)

    def totals(self) -> dict[str, int]:
        """Return the report as plain data."""
        return asdict(self.report)


def _groups(rows: Sequence[Row], corpus: list[str]) -> list[Group]:
    groups: dict[GroupKey, Group] = {}
    for number, row in enumerate(rows):
        task_type, instruction = row.get("task_type") or "retrieval", row.get("instruction") or ""
        key = task_type, str(row.get("source") or ""), instruction
        group = groups.setdefault(key, Group(task_type, instruction))
        group.rows.append(number)
        group.add_passages([row["positive"], *(row.get("negatives") or ())])
    for group in groups.values():
        group.add_passages(corpus)
    return list(groups.values())


def _queries(group: Group, rows: Sequence[Row]) -> dict[str, int]:
    """Return the distinct queries of a group by text, numbered."""
    texts = dict.fromkeys(rows[number]["query"] for number in group.rows)
    return {text: number for number, text in enumerate(texts)}
