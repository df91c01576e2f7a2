"""This file owns a local task's rows as the data sets that mteb's tasks hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvembed_deploy.parity.suite import LocalTask
from nvembed_deploy.parity.suite_rows import SPLITS, Rows

if TYPE_CHECKING:
    import datasets


def dataset_of(task: LocalTask, split: str) -> Any:  # noqa: ANN401 - mteb's nesting
    """Return a task's data: of a retrieval by subset and split, else by split."""
    if "corpus" in task.tables:
        return {"default": {split: _ranked(task)}}
    if task.kind == "classification":
        return _split(_labeled(task.tables["labeled"]))
    (rows,) = task.tables.values()
    return _split({split: [_ROW[task.kind](row) for row in rows]})


def _split(rows: dict[str, Rows]) -> datasets.DatasetDict:
    from datasets import DatasetDict

    return DatasetDict({name: _table(found) for name, found in rows.items()})


def _table(rows: Rows) -> datasets.Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _ranked(task: LocalTask) -> dict[str, Any]:
    tables = task.tables
    corpus = [
        {"id": r["_id"], "title": r.get("title") or "", "text": r["text"]} for r in tables["corpus"]
    ]
    queries = [{"id": r["_id"], "text": r["text"]} for r in tables["queries"]]
    relevant: dict[str, dict[str, int]] = {}
    for row in tables["qrels"]:
        relevant.setdefault(row["query"], {})[row["document"]] = row["score"]
    ranked = {r["query-id"]: r["corpus-ids"] for r in tables.get("top_ranked", [])}
    return {
        "corpus": _table(corpus),
        "queries": _table(queries),
        "relevant_docs": relevant,
        "top_ranked": ranked or None,
    }


def _labeled(rows: Rows) -> dict[str, Rows]:
    """Return texts with numbers for labels, those of the judged texts first.

    Of two that are judged mteb takes 1 for the positive one; it has to be there.
    """
    judged = {row["label"] for row in rows if row["split"] == "test"}
    labels = sorted({row["label"] for row in rows}, key=lambda label: (label not in judged, label))
    numbers = {label: number for number, label in enumerate(labels)}
    return {
        split: [
            {"text": r["text"], "label": numbers[r["label"]]} for r in rows if r["split"] == split
        ]
        for split in SPLITS
    }


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    return {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}


_ROW = {
    "sts": lambda row: _pair(row) | {"score": float(row["score"])},
    "pair_classification": lambda row: _pair(row) | {"labels": row["label"]},
    "clustering": lambda row: {"sentences": row["text"], "labels": row["label"]},
    "summarization": lambda row: {
        "text": row["text"],
        "human_summaries": row["human_summaries"],
        "machine_summaries": row["machine_summaries"],
        "relevance": [float(score) for score in row["relevance"]],
    },
}
