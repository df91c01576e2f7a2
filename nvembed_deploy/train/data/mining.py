"""This file owns mining: pairs in, the same pairs with hard negatives found by a teacher out.

Pairs of one task, source and instruction are a group (`group.py`); negatives come from the same
group, and labels hold within it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.data.embeddings import EmbeddingStore
from nvembed_deploy.train.data.group import EmbeddedGroup, Group, groups_of
from nvembed_deploy.train.data.nearest import Near
from nvembed_deploy.train.data.negatives import Choice, choose
from nvembed_deploy.train.data.relevance import Relevance
from nvembed_deploy.train.data.rows import Row, labelled_negatives, with_negatives


@dataclass
class MiningReport:
    """What mining found. Counts are of (row, passage) unless they say rows."""

    rows: int = 0
    passages: int = 0
    negatives: int = 0
    known_relevant: int = 0
    """Never taken: positives of the same query, texts that share a label, the query itself."""
    rejected: int = 0
    """False negatives, as far as the rule tells: too near to the query beside its positive."""
    rows_with_rejected: int = 0
    rows_short: int = 0
    """With fewer negatives than asked for."""
    rows_without: int = 0
    """With none."""
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
            f"passed over as known to be relevant: {counted(self.known_relevant, 'passage')}",
            f"positive above all candidates: {self.rows_positive_first * share:.1f}% of rows",
            f"fewer negatives than asked for: {counted(self.rows_short, 'row')}, "
            f"none at all: {counted(self.rows_without, 'row')}",
        ]


@dataclass(frozen=True)
class _Chosen:
    """Which of some near passages are negatives, by place, and what was seen on the way."""

    places: NDArray[np.int64]
    rejected: int
    is_positive_first: bool


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
        self._groups = groups_of(rows, list(corpus))
        # by instruction, then query: the same question in two sources has the positives of both
        self._positives: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for row in rows:
            self._positives[row.get("instruction") or ""][row["query"]].add(row["positive"])

    @property
    def num_texts(self) -> int:
        """Return how many texts are embedded in all."""
        return sum(len(g.passages) + len(g.queries) - g.num_alike for g in self._groups)

    def mine(
        self, store: EmbeddingStore, advance: Callable[[int], None] = lambda _: None
    ) -> Iterator[Row]:
        """Yield the rows in their order with mined negatives in place of their own.

        Where those are too few, own ones that the rule lets pass stay. `negative_scores` and
        `positive_score` are the teacher's, `negative_labels` what is known of labels. Embeddings
        that the store has are not computed again.
        """
        mined: dict[int, Row] = {}
        for group in self._groups:
            self.report.passages += len(group.passages)
            embedded = self._embed(group, store, advance)
            numbers = list(group.queries.values())
            for query, near in enumerate(embedded.nearest(self._choice.depth)):
                for number in numbers[query]:
                    mined[number] = self._mined(embedded, query, near, self._rows[number])
        for number in range(len(self._rows)):
            yield mined.pop(number)

    def _embed(
        self, group: Group, store: EmbeddingStore, advance: Callable[[int], None]
    ) -> EmbeddedGroup:
        rows = (self._rows[number] for numbers in group.queries.values() for number in numbers)
        known = Relevance(rows, group.passages, self._positives[group.instruction])
        passages, queries = list(group.passages), list(group.queries)
        embed = partial(store.embed, instruction=group.instruction, advance=advance)
        if group.num_alike:
            rows_ND = embed([*passages, *queries[group.num_alike :]])
            first_query = len(passages) - group.num_alike
            return EmbeddedGroup(group, known, rows_ND[first_query:], rows_ND[: len(passages)])
        passage_MD = embed(passages, instruction=group.of_passages)
        return EmbeddedGroup(group, known, embed(queries), passage_MD)

    def _mined(self, group: EmbeddedGroup, query: int, near: Near, row: Row) -> Row:
        numbers, known = group.group.passages, group.known
        positive = float(group.scored(query, [numbers[row["positive"]]]).scores_K[0])
        relevant = known.relevant(row["query"])
        chosen = self._choose(group, row["query"], near, positive)
        if len(chosen.places) < self._choice.count:
            given = [numbers[text] for text, _ in labelled_negatives(row)]
            more = np.setdiff1d(given, np.concatenate([near.numbers_K, *relevant]))
            near = near.before(group.scored(query, more))
            chosen = self._choose(group, row["query"], near, positive)
        self._count(chosen, sum(map(len, relevant)))
        texts = [group.passages[near.numbers_K[i]] for i in chosen.places]
        return with_negatives(row, ((text, known.label(text)) for text in texts)) | {
            "positive_score": round(positive, 4),
            "negative_scores": [round(float(near.scores_K[i]), 4) for i in chosen.places],
        }

    def _choose(self, group: EmbeddedGroup, query: str, near: Near, positive: float) -> _Chosen:
        are_others_K = group.known.are_others(query, near.numbers_K)
        ceiling_K = np.where(are_others_K, np.inf, self._choice.ceiling(positive))
        places, rejected = choose(near.scores_K, ceiling_K, self._choice.count)
        return _Chosen(places, rejected, not (near.scores_K > positive).any())

    def _count(self, chosen: _Chosen, relevant: int) -> None:
        report, negatives = self.report, len(chosen.places)
        report.negatives += negatives
        report.known_relevant += relevant
        report.rejected += chosen.rejected
        report.rows_with_rejected += chosen.rejected > 0
        report.rows_short += negatives < self._choice.count
        report.rows_without += negatives == 0
        report.rows_positive_first += chosen.is_positive_first

    def totals(self) -> dict[str, int]:
        """Return the report as plain data."""
        return asdict(self.report)
