"""This file owns the values of a random checkpoint: stored nowhere, the same every time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_POOL = np.random.default_rng(0).standard_normal(1 << 24, np.float32)
"""Values are taken from it, over and over."""


@cache
def _scaled(scale: np.float32) -> NDArray[np.float32]:
    """Return the pool times a scale; a model has few of these, and copying is faster."""
    scaled: NDArray[np.float32] = _POOL * scale
    return scaled


@dataclass(frozen=True)
class RandomTensor:
    """A tensor of a random checkpoint: normal values, scaled so that states stay finite."""

    path: str
    shape: tuple[int, ...]

    def read(self, rows: slice | None = None) -> NDArray[np.float32]:
        """Return it, or some of its rows: the same values every time."""
        start, stop, _ = (rows or slice(None)).indices(self.shape[0])
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        values, pool = np.empty((stop - start) * width, np.float32), _scaled(self._scale)
        place, done = zlib.crc32(self.path.encode()) + start * width, 0
        while done < len(values):  # in long pieces: a full-size model is 31 GB of such values
            piece = pool[(place + done) % len(pool) :][: len(values) - done]
            values[done : done + len(piece)] = piece
            done += len(piece)
        values = values.reshape(stop - start, *self.shape[1:])
        return 1 + values if self._is_gain else values

    @property
    def _is_gain(self) -> bool:
        return self.path.endswith("norm.weight")

    @property
    def _scale(self) -> np.float32:
        if self._is_gain:
            return np.float32(0.1)
        return np.float32(0.02 if len(self.shape) == 1 else self.shape[-1] ** -0.5)
