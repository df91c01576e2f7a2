"""This file owns the rows of a suite's files: which columns, read by line and refused by line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.text import fault_of

SPLITS = ("train", "test")
MOST_RELEVANT = 1_000_000
"""Highest score of a line of qrels.tsv: trec_eval counts the documents of each score up to it."""
Rows = list[dict[str, Any]]
Tables = dict[str, Rows]
"""Rows by the stem of their file."""
Check = Callable[[Any], str]
"""Given a value, says what was expected of it; nothing if it is that."""


def _text(value: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(value, str):
        return "a text"
    return "" if fault_of(value) is None else "a text without half of a surrogate pair"


def _id(value: Any) -> str:  # noqa: ANN401 - JSON
    return _text(value) or ("a text without NUL" if "\0" in value else "")


def _number(value: Any) -> str:  # noqa: ANN401 - JSON
    return "" if _is_finite(value) else "a finite number"


def _is_finite(value: Any) -> bool:  # noqa: ANN401 - JSON
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _choice(*allowed: Any) -> Check:  # noqa: ANN401 - JSON
    expected = " or ".join(map(str, allowed))
    return lambda value: "" if (type(value), value) in [(type(a), a) for a in allowed] else expected


def _list_of(check: Check, named: str) -> Check:
    def checked(value: Any) -> str:  # noqa: ANN401 - JSON
        is_filled = isinstance(value, list) and len(value) > 0
        return "" if is_filled and not any(map(check, value)) else f"a list of {named}, not empty"

    return checked


@dataclass(frozen=True)
class Table:
    """What the rows of one file are."""

    stem: str
    columns: Mapping[str, Check]
    key: str = ""
    """A column whose values differ from row to row."""
    optional: Mapping[str, Check] = field(default_factory=dict)
    """Columns that may be absent, or null."""
    refers: Mapping[str, str] = field(default_factory=dict)
    """Columns of lists of ids that another table has, by its stem."""
    alike: tuple[str, ...] = ()
    """Columns whose lists are as long as each other."""


_TEXTS = _list_of(_text, "texts")
_TEXT_ID: dict[str, Check] = {"_id": _id, "text": _text}
_RETRIEVAL = (
    Table("corpus", _TEXT_ID, "_id", optional={"title": _text}),
    Table("queries", _TEXT_ID, "_id"),
)
_PAIR: dict[str, Check] = {"sentence1": _text, "sentence2": _text}
KINDS: dict[str, tuple[Table, ...]] = {
    "retrieval": _RETRIEVAL,
    "reranking": (
        *_RETRIEVAL,
        Table(
            "top_ranked",
            {"query-id": _id, "corpus-ids": _list_of(_id, "texts")},
            "query-id",
            refers={"corpus-ids": "corpus"},
        ),
    ),
    "sts": (Table("pairs", {**_PAIR, "score": _number}),),
    "pair_classification": (Table("pairs", {**_PAIR, "label": _choice(0, 1)}),),
    "classification": (
        Table("labeled", {"text": _text, "label": _text, "split": _choice(*SPLITS)}),
    ),
    "clustering": (Table("data", {"text": _text, "label": _text}),),
    "summarization": (
        Table(
            "summaries",
            {
                "text": _text,
                "human_summaries": _TEXTS,
                "machine_summaries": _TEXTS,
                "relevance": _list_of(_number, "finite numbers"),
            },
            alike=("machine_summaries", "relevance"),
        ),
    ),
}


def read_tables(folder: Path, kind: str) -> tuple[Tables, list[Path]]:
    """Return the rows of a task's files, and the files; of queries those that qrels.tsv judges.

    Raises:
        InputError: a file is missing or empty, or has a wrong line.
    """
    tables: Tables = {}
    files = []
    for table in KINDS[kind]:
        files.append(folder / f"{table.stem}.jsonl")
        tables[table.stem] = _filled(files[-1], _rows(files[-1], table, tables))
    if "corpus" in tables:
        files.append(folder / "qrels.tsv")
        tables["qrels"] = _filled(files[-1], _qrels(files[-1], tables))
        judged = {row["query"] for row in tables["qrels"]}
        tables["queries"] = [row for row in tables["queries"] if row["_id"] in judged]
    return tables, files


def _filled(path: Path, rows: Iterator[dict[str, Any]]) -> Rows:
    """Return a file's rows; there is one at least."""
    found = list(rows)
    if not found:
        raise InputError(
            f"{path.parent}: {path.stem} has no row", "put texts there, or remove the task"
        )
    return found


def _rows(path: Path, table: Table, tables: Tables) -> Iterator[dict[str, Any]]:
    known = {column: {row["_id"] for row in tables[stem]} for column, stem in table.refers.items()}
    lines_by_key: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: broken JSON", "correct the line") from None
        _check_row(where, row, table)
        for column, ids in known.items():
            _check_known(where, column, row[column], ids)
        if table.key and (first := lines_by_key.setdefault(row[table.key], number)) != number:
            raise InputError(
                f"{where}: {table.key} is {row[table.key]!r:.60}, as on line {first}",
                "give each row an id of its own",
            )
        yield row


def _check_row(where: str, row: Any, table: Table) -> None:  # noqa: ANN401 - JSON
    values = row if isinstance(row, dict) else {}
    given = {name: check for name, check in table.optional.items() if values.get(name) is not None}
    for column, check in {**table.columns, **given}.items():
        value = values.get(column)
        if expected := check(value):
            raise InputError(f"{where}: {column} is {value!r:.60}", f"expected {expected}")
    lengths = {column: len(values[column]) for column in table.alike}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{count} {column}" for column, count in lengths.items())
        raise InputError(f"{where}: got {found}", "expected as many of one as of the other")


def _check_known(where: str, column: str, found: list[str], ids: set[str]) -> None:
    unknown = [name for name in found if name not in ids]
    if unknown:
        raise InputError(
            f"{where}: {column} has {unknown[0]!r:.60}", "expected each to be the _id of a row"
        )


def _qrels(path: Path, tables: Tables) -> Iterator[dict[str, Any]]:
    queries = {row["_id"] for row in tables["queries"]}
    documents = {row["_id"] for row in tables["corpus"]}
    scores: dict[tuple[str, str], int] = {}
    for number, line in _lines(path):
        query, _, rest = line.partition("\t")
        document, _, score = rest.rstrip().partition("\t")
        if (query, document) == ("query-id", "corpus-id"):
            continue
        if query not in queries or document not in documents or not _is_relevance(score.strip()):
            raise InputError(
                f"{path}, line {number}: {line!r:.80}",
                "expected a query-id of queries.jsonl, a corpus-id of corpus.jsonl, a whole number "
                f"of at most {MOST_RELEVANT}",
            )
        value = int(score.lstrip("0") or "0")
        if (other := scores.setdefault((query, document), value)) != value:
            raise InputError(
                f"{path}, line {number}: {query!r:.60} and {document!r:.60} have the score {value} "
                f"here and {other} above",
                "keep one of the lines",
            )
        yield {"query": query, "document": document, "score": value}


def _is_relevance(text: str) -> bool:
    digits = text.lstrip("0") or "0"
    is_short = len(digits) <= len(str(MOST_RELEVANT))
    return is_short and text.isdecimal() and int(digits) <= MOST_RELEVANT


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", "put the file there, in UTF-8") from None
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, line
