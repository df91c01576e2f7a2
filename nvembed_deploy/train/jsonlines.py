"""This file owns reading JSON lines: each object with its place, each fault in words."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from nvembed_deploy.errors import InputError


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield (place, object) for each line; a text in the object's stead says why it is none.

    A file that ends in .gz is unpacked. Empty lines are passed over.

    Raises:
        InputError: the packed data are damaged.
    """
    number = 0
    with cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", _parse(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}, after line {number}: {error}", "copy it again") from None


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "broken JSON"
    return row if isinstance(row, dict) else f"got a {type(row).__name__}, expected an object"
