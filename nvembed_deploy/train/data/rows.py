"""This file owns JSON lines: read with the place of every fault, written so that they appear whole.

A file that ends in .gz is packed. A fault has a place (file and line) and a reason; equal reasons
are counted together.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.lock import hold
from nvembed_deploy.train.example import fault_of
from nvembed_deploy.train.jsonlines import read_lines

Row = dict[str, Any]
Placed = tuple[str, Row]
"""A row and where it came from."""


class Faults:
    """What is wrong with some input: each reason, how often, and where first."""

    def __init__(self, *, stop: bool) -> None:
        """Begin with none; with `stop` the first one ends the work."""
        self._stop = stop
        self._first: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def add(self, place: str, reason: str) -> None:
        """Count a fault.

        Raises:
            InputError: the first fault ends the work.
        """
        if self._stop:
            raise InputError(
                f"{place}: {reason}", "correct it, or add --skip-bad to count and leave out"
            )
        self._first.setdefault(reason, place)
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def lines(self) -> list[str]:
        """Return a line for each reason, the most frequent first."""
        ranked = sorted(self.counts.items(), key=lambda item: -item[1])
        return [f"{n:>7,} x {reason} (first: {self._first[reason]})" for reason, n in ranked]


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
        fault = fault_of(row)
        if fault is None:
            yield place, row
        else:
            faults.add(place, fault)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSONL and return how many; the file appears when all are written.

    Raises:
        InputError: the path is a folder, its folder does not exist, or another run writes it.
    """
    cli.check_out("--out", path)
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
