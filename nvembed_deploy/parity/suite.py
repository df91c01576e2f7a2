"""This file owns local suites: a folder a task, read and checked, nothing fetched.

`task.json` says `name`, `type` and `instruction`; the texts lie beside it as JSON lines:
corpus.jsonl, queries.jsonl, qrels.tsv (retrieval; reranking also top_ranked.jsonl), pairs.jsonl
(sts: score; pair_classification: label 0 or 1), labeled.jsonl (classification), data.jsonl
(clustering), summaries.jsonl (summarization). `suite_rows.py` reads them, by line, and
`suite_rules.py` looks at them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import hash_file
from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.suite_rows import KINDS, Tables, read_tables
from nvembed_deploy.parity.suite_rules import check_tables
from nvembed_deploy.text import fault_of

BUILT_IN = Path(__file__).parent / "suite"
BUILT_IN_NAME = "built-in"
_NAME_BYTES = 200
"""Longest name of a task: mteb calls a file so, and adds 17."""


@dataclass(frozen=True)
class LocalTask:
    """One task of a suite. `tables` are rows by file stem, `sha256` is of all its files."""

    name: str
    kind: str
    instruction: str
    tables: Tables
    sha256: str


def read_suite(folder: Path, only: tuple[str, ...] = ()) -> list[LocalTask]:
    """Read a suite's tasks in the order of their names, or only the named ones.

    Raises:
        InputError: no task is there, two have one name, or a file is missing or has a wrong line.
    """
    if not folder.is_dir():
        raise InputError(f"suite {folder} is no folder", "give a folder that holds task folders")
    paths = [path.parent for path in sorted(folder.glob("*/task.json"))]
    tasks = [read_task(path) for path in paths]
    if not tasks:
        raise InputError(f"suite {folder} has no */task.json", "give a folder of task folders")
    _check_names(paths, tasks)
    unknown = sorted(set(only) - {task.name for task in tasks})
    if unknown:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"suite {folder} has no task {', '.join(unknown)}", f"it has: {names}")
    return [task for task in tasks if not only or task.name in only]


def _check_names(paths: Sequence[Path], tasks: Sequence[LocalTask]) -> None:
    first: dict[str, Path] = {}
    for path, task in zip(paths, tasks, strict=True):
        if first.setdefault(task.name, path) != path:
            raise InputError(
                f"{path / 'task.json'}: name is {task.name!r}, as in {first[task.name].name}",
                "give each task a name of its own",
            )


def read_task(folder: Path) -> LocalTask:
    """Read one task.

    Raises:
        InputError: a file is missing, or has a wrong line.
    """
    path = folder / "task.json"
    described = _described(path)
    kind = described.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: type is {kind!r:.60}", f"expected one of {sorted(KINDS)}")
    instruction = described.get("instruction") or ""
    if problem := fault_of(instruction):
        raise InputError(f"{path}: instruction {problem}", "write it as one text, or leave it out")
    name = _name_of(path, described.get("name") or folder.name)
    tables, files = read_tables(folder, kind)
    check_tables(str(folder), kind, tables)
    digest = hashlib.sha256("".join(map(hash_file, [path, *files])).encode()).hexdigest()
    return LocalTask(name, kind, instruction, tables, digest)


def _described(path: Path) -> dict[str, Any]:
    fix = "write it as JSON: name, type, instruction"
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", fix) from None
    if not isinstance(described, dict):
        raise InputError(f"{path}: got a JSON {type(described).__name__}, expected an object", fix)
    return described


def _name_of(path: Path, name: Any) -> str:  # noqa: ANN401 - JSON
    """Return a task's name; files are called so."""
    is_name = isinstance(name, str) and name.isprintable() and name == name.strip()
    if not is_name or name[:1] in {"", "."} or {"/", "\\"} & set(name):
        raise InputError(
            f"{path}: name is {name!a:.60}",
            "expected a printable text without / and \\ that does not begin with a dot",
        )
    if len(name.encode()) > _NAME_BYTES:
        raise InputError(
            f"{path}: name has {len(name.encode())} bytes, expected at most {_NAME_BYTES}",
            "shorten it",
        )
    return str(name)


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
            if task.kind == "summarization":  # what was summarised is not embedded
                texts += row["human_summaries"] + row["machine_summaries"]
            else:
                texts += [row[key] for key in ("text", "sentence1", "sentence2") if key in row]
    return texts
