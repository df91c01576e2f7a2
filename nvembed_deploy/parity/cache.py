"""This file owns the cache of embeddings: each text of each model is computed once.

A cache is a folder per model: keys.bin (32 bytes of sha256 a row) and rows.bin (float32 rows),
both appended to. A run that is killed leaves whole rows; what is beyond the shorter file is cut.
Several runs may share a folder: whoever reads keys, cuts or appends holds a lock meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.filelock import wait_for

_KEY = 32


class EmbeddingCache:
    """Rows of one model by the text they were computed from."""

    def __init__(self, folder: Path, width: int) -> None:
        """Open or make the cache of a model whose embeddings have `width` numbers."""
        folder.mkdir(parents=True, exist_ok=True)
        self._keys, self._rows = folder / "keys.bin", folder / "rows.bin"
        self._width = width
        self._count = 0
        self._places: dict[bytes, int] = {}
        self._read_on()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the places of keys that are not stored, the first of equal ones only.

        What other runs have stored meanwhile counts.
        """
        self._read_on()
        return self._absent(keys)

    def add(self, keys: Sequence[bytes], rows_ND: NDArray[np.float32]) -> None:
        """Store rows, on disk before it returns. Of a key that is stored the first row stays."""
        with self._held() as (key_file, row_file):
            places = self._absent(keys)
            new = [keys[place] for place in places]
            row_file.write(np.asarray(rows_ND[places], np.float32).tobytes())
            row_file.flush()  # before the keys: a killed run leaves no key without its row
            key_file.write(b"".join(new))
            key_file.flush()
            self._learn(new)

    def get(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Return [N, D] of keys that are stored."""
        places = [self._places[key] for key in keys]
        if not places:
            return np.empty((0, self._width), np.float32)
        # The rows stay on disk: those of a large benchmark do not fit into memory.
        table = np.memmap(self._rows, np.float32, "r", shape=(self._count, self._width))
        return np.asarray(table[places])

    def _absent(self, keys: Sequence[bytes]) -> list[int]:
        seen: set[bytes] = set()
        places = []
        for place, key in enumerate(keys):
            if key not in self._places and key not in seen:
                seen.add(key)
                places.append(place)
        return places

    def _read_on(self) -> None:
        with self._held():
            pass

    @contextmanager
    def _held(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Hold the cache, cut what a killed run left, and read what other runs have stored.

        Held for a write, not for a run: a model that is compared with itself has one cache twice.

        Yields:
            The files of keys and of rows, both at the same row: their end.
        """
        with self._keys.open("a+b") as key_file, self._rows.open("ab") as row_file:
            wait_for(key_file.fileno())
            key_bytes, row_bytes = (os.fstat(f.fileno()).st_size for f in (key_file, row_file))
            count = min(key_bytes // _KEY, row_bytes // (4 * self._width))
            _cut(key_file, key_bytes, count * _KEY)
            _cut(row_file, row_bytes, count * 4 * self._width)
            key_file.seek(self._count * _KEY)
            found = key_file.read()
            self._learn(found[i : i + _KEY] for i in range(0, len(found), _KEY))
            yield key_file, row_file

    def _learn(self, keys: Iterable[bytes]) -> None:
        """Know the keys of the rows after those that are known."""
        for key in keys:
            self._places[key] = self._count
            self._count += 1


def text_key(instruction: str, text: str) -> bytes:
    """Return the key of a text under an instruction."""
    content = f"{len(instruction)}:{instruction}{text}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()


def _cut(file: IO[bytes], found: int, whole: int) -> None:
    if found > whole:
        file.truncate(whole)
