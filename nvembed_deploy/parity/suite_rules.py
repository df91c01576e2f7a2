"""This file owns what a task's rows must be together, so that its score says something.

Where all of the truth is the same, any model is as good as any other, or the score is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.suite_rows import SPLITS, Rows, Tables

Faults = Iterator[tuple[str, str]]
"""What is wrong, and what to do."""


def check_tables(where: str, kind: str, tables: Tables) -> None:
    """Refuse a task that would measure nothing.

    Raises:
        InputError: its truth is the same everywhere, or there is nothing to learn it from.
    """
    for problem, fix in _RULES[kind](tables):
        raise InputError(f"{where}: {problem}", fix)


def _retrieval(tables: Tables) -> Faults:
    if all(row["score"] == 0 for row in tables["qrels"]):
        yield "every score of qrels.tsv is 0: no document is relevant", "mark those that are with 1"


def _reranking(tables: Tables) -> Faults:
    yield from _retrieval(tables)
    ranked = {row["query-id"] for row in tables["top_ranked"]}
    missing = [row["query"] for row in tables["qrels"] if row["query"] not in ranked]
    if missing:
        yield (
            f"query {missing[0]!r:.60} of qrels.tsv has no row in top_ranked.jsonl",
            "say which documents are to be ranked for it",
        )


def _sts(tables: Tables) -> Faults:
    yield from _same("pairs.jsonl", "score", tables["pairs"])


def _labels(stem: str) -> Callable[[Tables], Faults]:
    return lambda tables: _same(f"{stem}.jsonl", "label", tables[stem])


def _classification(tables: Tables) -> Faults:
    rows = {split: [r for r in tables["labeled"] if r["split"] == split] for split in SPLITS}
    missing = [split for split in SPLITS if not rows[split]]
    if missing:
        yield (
            f"labeled.jsonl: no row is of split {' or '.join(missing)}",
            "mark each row: train or test",
        )
    yield from _same("labeled.jsonl, split train", "label", rows["train"])
    known, judged = ({row["label"] for row in rows[split]} for split in SPLITS)
    if judged - known:
        yield (
            f"labeled.jsonl: label {min(judged - known)!r:.60} is in split test and not in train",
            "give examples of it to learn from",
        )


def _summarization(tables: Tables) -> Faults:
    if all(len(set(row["relevance"])) == 1 for row in tables["summaries"]):
        yield (
            "summaries.jsonl: in no row does the relevance differ: nothing can be ranked",
            "give each text summaries that are better and worse",
        )


def _same(where: str, column: str, rows: Rows) -> Faults:
    values = {row[column] for row in rows}
    if len(values) == 1:
        yield (
            f"{where}: every {column} is {values.pop()!r:.60}: nothing can be told apart",
            f"give rows of another {column} too",
        )


_RULES: dict[str, Callable[[Tables], Faults]] = {
    "retrieval": _retrieval,
    "reranking": _reranking,
    "sts": _sts,
    "pair_classification": _labels("pairs"),
    "classification": _classification,
    "clustering": _labels("data"),
    "summarization": _summarization,
}
