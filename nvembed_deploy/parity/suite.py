"""This file owns local suites: a folder a task, read and checked, nothing fetched.

`task.json` says `name`, `type` and `instruction`; the texts lie beside it as JSON lines:
corpus.jsonl, queries.jsonl, qrels.tsv (retrieval; reranking also top_ranked.jsonl), pairs.jsonl
(sts: score; pair_classification: label 0 or 1), labeled.jsonl (classification), data.jsonl
(clustering), summaries.jsonl (summarization).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import hash_file
from nvembed_deploy.errors import InputError

BUILT_IN = Path(__file__).parent / "suite"
BUILT_IN_NAME = "built-in"
SPLITS = ("train", "test")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LocalTask:
    """One task of a suite. `tables` are rows by file stem, `sha256` is of all its files."""

    name: str
    kind: str
    instruction: str
    tables: dict[str, Rows]
    sha256: str


@dataclass(frozen=True)
class _Table:
    stem: str
    columns: dict[str, type | tuple[type, ...]]
    key: str = ""
    """A column whose values differ from row to row."""
    allowed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The only values of a column."""


_TEXT_ID: dict[str, type | tuple[type, ...]] = {"_id": str, "text": str}
_RETRIEVAL = (_Table("corpus", _TEXT_ID, "_id"), _Table("queries", _TEXT_ID, "_id"))
_NUMBER = (int, float)
KINDS: dict[str, tuple[_Table, ...]] = {
    "retrieval": _RETRIEVAL,
    "reranking": (
        *_RETRIEVAL,
        _Table("top_ranked", {"query-id": str, "corpus-ids": list}, "query-id"),
    ),
    "sts": (_Table("pairs", {"sentence1": str, "sentence2": str, "score": _NUMBER}),),
    "pair_classification": (
        _Table(
            "pairs", {"sentence1": str, "sentence2": str, "label": int}, allowed={"label": (0, 1)}
        ),
    ),
    "classification": (
        _Table("labeled", {"text": str, "label": str, "split": str}, allowed={"split": SPLITS}),
    ),
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
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", "write it as JSON: name, type, instruction") from None
    kind = described.get("type")
    if kind not in KINDS:
        raise InputError(f"{path}: type is {kind!r}", f"expected one of {sorted(KINDS)}")
    files = {table.stem: folder / f"{table.stem}.jsonl" for table in KINDS[kind]}
    tables = {t.stem: _filled(files[t.stem], _rows(files[t.stem], t)) for t in KINDS[kind]}
    if kind in {"retrieval", "reranking"}:
        files["qrels"] = folder / "qrels.tsv"
        tables["qrels"] = _filled(files["qrels"], _qrels(files["qrels"], tables))
    if kind == "classification":
        _check_splits(files["labeled"], tables["labeled"])
    name, instruction = described.get("name") or folder.name, described.get("instruction") or ""
    digest = hashlib.sha256("".join(map(hash_file, [path, *files.values()])).encode()).hexdigest()
    return LocalTask(str(name), kind, str(instruction), tables, digest)


def _filled(path: Path, rows: Iterator[dict[str, Any]]) -> Rows:
    """Return a file's rows; there is one at least."""
    found = list(rows)
    if not found:
        raise InputError(
            f"{path.parent}: {path.stem} has no row", "put texts there, or remove the task"
        )
    return found


def _check_splits(path: Path, rows: Rows) -> None:
    """Check that there is something to learn from and something to judge."""
    missing = [split for split in SPLITS if all(row["split"] != split for row in rows)]
    if missing:
        raise InputError(
            f"{path}: no row is of split {' or '.join(missing)}", "mark each row: train or test"
        )


def _rows(path: Path, table: _Table) -> Iterator[dict[str, Any]]:
    lines_by_key: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{path}, line {number}: broken JSON", "correct the line") from None
        where = f"{path}, line {number}"
        _check_row(where, row, table)
        if table.key and (first := lines_by_key.setdefault(row[table.key], number)) != number:
            raise InputError(
                f"{where}: {table.key} is {row[table.key]!r:.60}, as on line {first}",
                "give each row an id of its own",
            )
        yield row


def _check_row(where: str, row: Any, table: _Table) -> None:  # noqa: ANN401 - JSON
    for column, kind in table.columns.items():
        value = row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where}: {column} is {value!r:.60}", f"expected {_named(kind)}")
    for column, allowed in table.allowed.items():
        if row[column] not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"{where}: {column} is {row[column]!r:.60}", f"expected {expected}")


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
        content = path.read_text(encoding="utf-8-sig")
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
