"""This file owns finished requests on disk: a line each, kept whatever ends the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Lock
from typing import IO, Any, Self

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.lock import hold
from nvembed_deploy.train.jsonlines import read_lines

Record = dict[str, Any]


class ReplyLog:
    """Results by request. The first line says what they were made with."""

    def __init__(self, path: Path, settings: Record) -> None:
        """Open the log, or begin it; half a line at its end is cut off.

        Raises:
            InputError: it was begun with other settings, another run writes it, or it is damaged.
        """
        self._path = path
        self._file: IO[bytes] = path.open("a+b")
        self._lock = Lock()
        try:
            hold(self._file, path)
            self.results = self._read(settings)
        except InputError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, never within a line."""
        with self._lock:
            self._file.close()

    def add(self, request: str, result: Any) -> None:  # noqa: ANN401 - JSON
        """Keep a result. Safe to call from several threads; does nothing once the log is closed."""
        with self._lock:
            if self._file.closed:
                return
            self._append({"request": request, "result": result})
            self.results[request] = result

    def _append(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, settings: Record) -> Record:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        self._file.truncate(len(whole))
        lines = [_record(place, row) for place, row in read_lines(self._path)]
        if not lines:
            self._append(settings)
            return {}
        if lines[0] != settings:
            other = [key for key in settings if lines[0].get(key) != settings[key]]
            raise InputError(
                f"{self._path} was begun with { ({key: lines[0].get(key) for key in other}) }, "
                f"now asked for { ({key: settings[key] for key in other}) }",
                "go on with the same options, or remove that folder",
            )
        return {r["request"]: r["result"] for r in lines[1:]}


def _record(place: str, row: Record | str) -> Record:
    if isinstance(row, str):
        raise InputError(f"{place}: {row}", "remove that line: what it held is asked for again")
    return row
