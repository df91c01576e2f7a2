"""Shared by the tests of training data: raw rows on disk, and plans of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvembed_deploy.train.data.plan import SourcePlan
from nvembed_deploy.train.data.rows import Placed

ANIMALS = ("a cat is asleep", "the dog barks at night", "horses run over the hill")
MONEY = ("a bank lends money", "the price of gold falls", "taxes are due in April")
PLANTS = ("an oak sheds its leaves", "moss covers the old stone")


def write(path: Path, rows: Iterable[object]) -> Path:
    """Write rows as JSONL; a text is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def labelled_rows() -> list[dict[str, Any]]:
    """Return rows of three classes."""
    classes = {"animal": ANIMALS, "money": MONEY, "plant": PLANTS}
    return [{"text": text, "label": label} for label, texts in classes.items() for text in texts]


def placed(rows: Iterable[dict[str, Any]]) -> list[Placed]:
    """Give rows places: line 1, line 2."""
    return [(f"line {number}", row) for number, row in enumerate(rows, 1)]


def source(kind: str, path: Path | str = "raw.jsonl", **values: object) -> SourcePlan:
    """Return a source's section of a plan."""
    defaults = {"name": "raw", "path": path, "kind": kind, "instruction": "find it"}
    return SourcePlan.model_validate({**defaults, **values})
