"""This file owns embeddings on disk as they arrive: .npy, or JSON lines beside their records.

Legend: n rows of a window, N rows in all, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
"""A line of input: the JSON object as it came, or {"text": line}."""
Windows = Iterable[NDArray[np.float32]]
"""Float32 [n, D], one after another."""


def write_npy(path: Path, windows: Windows) -> tuple[int, int]:
    """Write float32 [N, D] without holding it, and return N and D.

    numpy's headers leave room for the first axis to grow, so the header is written again at the
    end, in place. Source: numpy.lib.format, "GROWTH_AXIS_MAX_DIGITS".
    """
    num_rows = width = 0
    with path.open("wb") as file:
        for window_ND in windows:
            if num_rows == 0:
                width = window_ND.shape[1]
                _write_header(file, num_rows, width)
            file.write(np.ascontiguousarray(window_ND, "<f4").data)
            num_rows += len(window_ND)
        file.seek(0)
        _write_header(file, num_rows, width)
    return num_rows, width


def _write_header(file: IO[bytes], num_rows: int, width: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
    np.lib.format.write_array_header_1_0(file, header)


def write_jsonl(path: Path, records: Iterator[Record], windows: Windows) -> tuple[int, int]:
    """Write each record with its embedding, a line each, and return N and D."""
    num_rows = width = 0
    with path.open("w", encoding="utf-8") as file:
        for window_ND in windows:
            lines = json_lines(records, window_ND)
            file.writelines(line + "\n" for line in lines)
            num_rows, width = num_rows + len(window_ND), window_ND.shape[1]
    return num_rows, width


def json_lines(
    records: Iterator[Record], window_ND: NDArray[np.float32], *, to_ascii: bool = False
) -> Iterator[str]:
    """Yield the next records with their rows: the shortest decimals that give the same float32."""
    for row_D, record in zip(window_ND, records, strict=False):
        values = [float(str(x)) for x in row_D]
        yield _line({**record, "embedding": values}, to_ascii=to_ascii)


def _line(record: Record, *, to_ascii: bool) -> str:
    line = json.dumps(record, ensure_ascii=to_ascii)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a cut emoji came in as an escape, and goes out as one
        return json.dumps(record)
    return line
