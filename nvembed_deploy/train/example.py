"""This file owns the training example: a query, its positive, its negatives, and what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

TaskType = Literal["retrieval", "sts", "classification", "clustering"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
SYMMETRIC = TASK_TYPES[1:]
"""Tasks whose two sides are alike: both carry the instruction."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """One line of training data. `instruction` belongs to the query."""

    task_type: str
    instruction: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def fault_of(row: object) -> str | None:
    """Say why a parsed line is no example; None if it is one."""
    if not isinstance(row, dict):
        return f"got a {type(row).__name__}, expected an object"
    return _wrong_kind(row) or _wrong_texts(row)


def _wrong_kind(row: dict[str, Any]) -> str | None:
    for key in ("query", "positive", "instruction"):
        value = row.get(key, "" if key == "instruction" else None)
        if not isinstance(value, str):
            return f"{key} is {value!r:.60}, expected a text"
    if row.get("task_type", TASK_TYPES[0]) not in TASK_TYPES:
        return f"task_type is {row['task_type']!r}, expected one of {list(TASK_TYPES)}"
    negatives = row.get("negatives") or []
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        return "negatives is no list of texts"
    return None


def _wrong_texts(row: dict[str, Any]) -> str | None:
    for key in ("query", "positive"):
        if not row[key].strip():
            return f"{key} is empty"
    if row["positive"] in (row.get("negatives") or []):
        return "the positive is among the negatives"
    if row["positive"] == row["query"]:
        return "the positive is the query itself"
    texts = [row.get("instruction", ""), row["query"], row["positive"]]
    texts += row.get("negatives") or []
    return None if all(map(is_unicode, texts)) else "a text is no valid Unicode"


def is_unicode(text: str) -> bool:
    r"""Return whether a text can be written as UTF-8: JSON's "\ud800" alone cannot."""
    return text.isascii() or _LONE_SURROGATE.search(text) is None


def to_example(row: dict[str, Any]) -> Example:
    """Return a faultless row as an example."""
    return Example(
        row.get("task_type") or TASK_TYPES[0],
        row.get("instruction") or "",
        row["query"],
        row["positive"],
        tuple(text for text in row.get("negatives") or () if text.strip()),
    )
