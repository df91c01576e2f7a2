"""This file owns local suites: a folder a task, read and checked, nothing fetched.

`task.json` says `name`, `type` and `instruction`; the texts lie beside it as JSON lines:
corpus.jsonl, queries.jsonl, qrels.tsv (retrieval; reranking also top_ranked.jsonl), pairs.jsonl
(sts: score; pair_classification: label 0 or 1), labeled.jsonl (classification), data.jsonl
(clustering), summaries.jsonl (summarization).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import InputError

BUILT_IN = Path(__file__).parent / "suite"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LocalTask:
    """One task of a suite. `tables` are rows by file stem."""

    name: str
    kind: str
    instruction: str
    tables: dict[str, Rows]


@dataclass(frozen=True)
class _Table:
    stem: str
    columns: dict[str, type | tuple[type, ...]]


_TEXT_ID: dict[str, type | tuple[type, ...]] = {"_id": str, "text": str}
_RETRIEVAL = (_Table("corpus", _TEXT_ID), _Table("queries", _TEXT_ID))
_NUMBER = (int, float)
KINDS: dict[str, tuple[_Table, ...]] = {
    "retrieval": _RETRIEVAL,
    "reranking": (*_RETRIEVAL, _Table("top_ranked", {"query-id": str, "corpus-ids": list})),
    "sts": (_Table("pairs", {"sentence1": str, "sentence2": str, "score": _NUMBER}),),
    "pair_classification": (_Table("pairs", {"sentence1": str, "sentence2": str, "label": int}),),
    "classification": (_Table("labeled", {"text": str, "label": str, "split": str}),),
    "clustering": (_Table("data", {"text": str, "label": str}),),
    "summarization": (
        _Table(
            "summaries",
            {"text": str, "human_summaries": list, "machine_summaries": list, "relevance": list},
        ),
    ),
}


def read_suite(folder: Path, only: tuple[str, ...] = ()) -> list[LocalTask]:
    """Read a suite's tasks in the order of their names, or only the named ones.

    Raises:
        InputError: no task is there, or a file is missing or has a wrong line.
    """
    if not folder.is_dir():
        raise InputError(f"suite {folder} is no folder", "give a folder that holds task folders")
    tasks = [read_task(path.parent) for path in sorted(folder.glob("*/task.json"))]
    if not tasks:
        raise InputError(f"suite {folder} has no */task.json", "give a folder of task folders")
    unknown = sorted(set(only) - {task.name for task in tasks})
    if unknown:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"suite {folder} has no task {', '.join(unknown)}", f"it has: {names}")
    return [task for task in tasks if not only or task.name in only]


def read_task(folder: Path) -> LocalTask:
    """Read one task.

    Raises:
        InputError: a file is missing, or has a wrong line.
    """
    path = folder / "task.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", "write it as JSON: name, type, instruction") from None
    kind = described.get("type")
    if kind not in KINDS:
        raise InputError(f"{path}: type is {kind!r}", f"expected one of {sorted(KINDS)}")
    tables = {t.stem: list(_rows(folder / f"{t.stem}.jsonl", t.columns)) for t in KINDS[kind]}
    for stem, rows in tables.items():
        if not rows:
            raise InputError(f"{folder}: {stem} has no row", "put texts there, or remove the task")
    if kind in {"retrieval", "reranking"}:
        tables["qrels"] = list(_qrels(folder / "qrels.tsv", tables))
    name = described.get("name") or folder.name
    return LocalTask(str(name), kind, str(described.get("instruction") or ""), tables)


def _rows(path: Path, columns: dict[str, type | tuple[type, ...]]) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{path}, line {number}: broken JSON", "correct the line") from None
        for column, kind in columns.items():
            value = row.get(column) if isinstance(row, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(
                    f"{path}, line {number}: {column} is {value!r:.60}",
                    f"expected {_named(kind)}",
                )
        yield row


def _named(kind: type | tuple[type, ...]) -> str:
    names = {str: "a text", int: "a whole number", list: "a list"}
    return names[kind] if isinstance(kind, type) else "a number"


def _qrels(path: Path, tables: dict[str, Rows]) -> Iterator[dict[str, Any]]:
    queries = {row["_id"] for row in tables["queries"]}
    documents = {row["_id"] for row in tables["corpus"]}
    for number, line in _lines(path):
        query, _, rest = line.partition("\t")
        document, _, score = rest.partition("\t")
        if (query, document) == ("query-id", "corpus-id"):
            continue
        if query not in queries or document not in documents or not score.strip().isdecimal():
            raise InputError(
                f"{path}, line {number}: {line!r:.80}",
                "expected a query-id of queries.jsonl, a corpus-id of corpus.jsonl, a whole number",
            )
        yield {"query": query, "document": document, "score": int(score)}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", "put the file there, in UTF-8") from None
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, line


def count_texts(task: LocalTask) -> int:
    """Return how many texts a task embeds."""
    return len(_texts(task))


def count_words(task: LocalTask) -> int:
    """Return how many words its texts have."""
    return sum(len(text.split()) for text in _texts(task))


def _texts(task: LocalTask) -> list[str]:
    texts: list[str] = []
    for stem in sorted(task.tables.keys() - {"qrels", "top_ranked"}):
        for row in task.tables[stem]:
            texts += [row[key] for key in ("text", "sentence1", "sentence2") if key in row]
            texts += row.get("human_summaries", []) + row.get("machine_summaries", [])
    return texts
