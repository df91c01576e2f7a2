"""This file owns the cache of embeddings: each text of each model is computed once.

A cache is a folder per model: keys.bin (32 bytes of sha256 a row) and rows.bin (float32 rows),
both appended to. A run that is killed leaves whole rows; what is beyond the shorter file is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_KEY = 32


class EmbeddingCache:
    """Rows of one model by the text they were computed from."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open or make the cache of a model whose embeddings have `width` numbers."""
        folder.mkdir(parents=True, exist_ok=True)
        self._keys, self._rows = folder / "keys.bin", folder / "rows.bin"
        self._width = width
        count = min(_size(self._keys) // _KEY, _size(self._rows) // (4 * width))
        _cut(self._keys, count * _KEY)
        _cut(self._rows, count * 4 * width)
        stored = self._keys.read_bytes()
        self._places = {stored[i * _KEY : (i + 1) * _KEY]: i for i in range(count)}
        self._table = np.fromfile(self._rows, np.float32).reshape(count, width)

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the places of keys that are not stored, the first of equal ones only."""
        seen: set[bytes] = set()
        places = []
        for place, key in enumerate(keys):
            if key not in self._places and key not in seen:
                seen.add(key)
                places.append(place)
        return places

    def add(self, keys: Sequence[bytes], rows_ND: NDArray[np.float32]) -> None:
        """Store rows, on disk before it returns."""
        with self._rows.open("ab") as file:
            file.write(np.ascontiguousarray(rows_ND, np.float32).tobytes())
        with self._keys.open("ab") as file:
            file.write(b"".join(keys))
        for key in keys:
            self._places[key] = len(self._places)
        self._table = np.concatenate([self._table, rows_ND.astype(np.float32)])

    def get(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return [N, D] of keys that are stored."""
        rows_ND: NDArray[np.float32] = self._table[[self._places[key] for key in keys]]
        return rows_ND


def text_key(instruction: str, text: str) -> bytes:
    """Return the key of a text under an instruction."""
    content = f"{len(instruction)}:{instruction}{text}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cut(path: Path, size: int) -> None:
    path.touch()
    if path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
