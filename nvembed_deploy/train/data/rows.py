"""This file owns JSON lines: read with the place of every fault, written so that they appear whole.

A file that ends in .gz is packed. A fault has a place (file and line) and a reason; equal reasons
are counted together.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.lock import hold
from nvembed_deploy.train.example import fault_of, is_unicode
from nvembed_deploy.train.jsonlines import read_lines

Row = dict[str, Any]
Placed = tuple[str, Row]
"""A row and where it came from."""
_SKIP = "correct it, or add --skip-bad to count and leave out"
_SHOWN = 10
_SUFFIXES = (".jsonl", ".jsonl.gz")


class Faults:
    """What is wrong with some input: each reason, how often, and where first."""

    def __init__(self, *, stop: bool, fix: str = _SKIP) -> None:
        """Begin with none; with `stop` the first one ends the work, and `fix` says what to do."""
        self._stop, self._fix = stop, fix
        self._first: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def add(self, place: str, reason: str) -> None:
        """Count a fault.

        Raises:
            InputError: the first fault ends the work.
        """
        if self._stop:
            raise InputError(f"{place}: {reason}", self._fix)
        self._first.setdefault(reason, place)
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def lines(self) -> list[str]:
        """Return a line for each reason, the most frequent first; many are one line at the end."""
        ranked = sorted(self.counts.items(), key=lambda item: -item[1])
        rest = ranked[_SHOWN:]
        lines = [
            f"{n:>7,} x {reason} (first: {self._first[reason]})" for reason, n in ranked[:_SHOWN]
        ]
        if rest:
            lines.append(f"{sum(n for _, n in rest):>7,} x for {len(rest):,} other reasons")
        return lines


def data_files(path: Path, *, without: Path | None = None) -> list[Path]:
    """Return a file, or the .jsonl and .jsonl.gz files of a folder, however deep, in order.

    Hidden ones are what other commands keep for themselves.

    Args:
        path: of a file or folder.
        without: a file that is left out, such as the one that an earlier run wrote there.

    Raises:
        InputError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    own = without.resolve() if without else None
    files = sorted(file for file in path.rglob("*") if _is_data(file, path))
    found = [file for file in files if file.resolve() != own]
    if not found:
        raise InputError(
            f"folder {path} has no .jsonl or .jsonl.gz file", "name the folder that holds the data"
        )
    return found


def _is_data(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.name.endswith(_SUFFIXES) and not is_hidden and file.is_file()


def read_rows(path: Path, faults: Faults) -> Iterator[Placed]:
    """Yield the objects of a JSONL file; a line that is none is a fault.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file", "give a .jsonl or .jsonl.gz file")
    for place, row in read_lines(path):
        if isinstance(row, str):
            faults.add(place, row)
        else:
            yield place, row


def read_pairs(path: Path, faults: Faults) -> Iterator[Placed]:
    """Yield the lines of a file that are examples; the others are faults."""
    for place, row in read_rows(path, faults):
        fault = pair_fault(row)
        if fault is None:
            yield place, row
        else:
            faults.add(place, fault)


def pair_fault(row: Row) -> str | None:
    """Say why a row is no example, or its `negative_labels` not those of its negatives."""
    labels, negatives = row.get("negative_labels"), row.get("negatives") or []
    if labels is not None and not isinstance(labels, list):
        return f"negative_labels is {labels!r:.60}, expected a list"
    fault = fault_of(row)
    if fault is None and labels and len(labels) != len(negatives):
        return f"got {len(labels)} negative_labels, expected {len(negatives)}, one a negative"
    return fault


def text_fault(key: str, text: object) -> str | None:
    """Say why a value is no text to train on."""
    if not isinstance(text, str):
        return f"{key} is {text!r:.60}, expected a text"
    if not text.strip():
        return f"{key} is empty"
    return None if is_unicode(text) else f"{key} is no valid Unicode"


def label_of(value: object) -> str | None:
    """Return a label as a text, 2.0 as 2; None where there is none, or NaN in its place."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None else str(value)


def labelled_negatives(row: Row) -> list[tuple[str, str | None]]:
    """Return the negatives of an example that hold a text, each with its label if that is known."""
    negatives = row.get("negatives") or []
    labels = row.get("negative_labels") or [None] * len(negatives)
    pairs = zip(negatives, labels, strict=True)
    return [(text, label_of(label)) for text, label in pairs if text.strip()]


def with_negatives(row: Row, negatives: Iterable[tuple[str, str | None]]) -> Row:
    """Return a row with these negatives, and their labels if any is known."""
    pairs = list(negatives)
    others = {key: value for key, value in row.items() if key != "negative_labels"}
    labels = [label for _, label in pairs]
    known = {"negative_labels": labels} if any(label is not None for label in labels) else {}
    return {**others, "negatives": [text for text, _ in pairs], **known}


def check_out(path: Path) -> None:
    """Refuse, before anything is computed, a file that could not be written, or not be read then.

    Raises:
        InputError: it is a folder, its folder does not exist, or its name says another format.
    """
    cli.check_out("--out", path)
    if not path.name.endswith(_SUFFIXES):
        raise InputError(
            f"--out {path} is named as another format", f"end it with {' or '.join(_SUFFIXES)}"
        )


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSONL and return how many; the file appears when all are written.

    Raises:
        InputError: see `check_out`; or another run writes it.
    """
    check_out(path)
    count = 0
    # One name for all runs: what a killed run left is written over.
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("ab") as raw:
        hold(raw, path)
        try:
            raw.truncate(0)
            file = _packed(raw) if path.suffix == ".gz" else raw
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                count += 1
            if file is not raw:
                file.close()  # writes the end of the packed data, leaves `raw` open
            raw.flush()
            os.fsync(raw.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return count


def _packed(raw: IO[bytes]) -> IO[bytes]:
    """Pack without a time stamp: equal rows give equal files."""
    return cast("IO[bytes]", gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
