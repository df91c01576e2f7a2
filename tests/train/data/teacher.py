"""A teacher whose embeddings can be worked out by hand: the share of each letter in a text."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LETTERS = "abcdefgh"


def unit(text: str, instruction: str = "") -> NDArray[np.float32]:
    """Return a text's letters as a row of length 1; an instruction's first letter counts too."""
    counts = np.array([(text + instruction[:1]).count(c) for c in LETTERS], np.float32)
    return counts / max(float(np.linalg.norm(counts)), 1e-6)


class LetterTeacher:
    """Counts its texts; may kill its own process at one of them, as a failing machine does."""

    def __init__(self, dies_at: int | None = None) -> None:
        """Begin at no text."""
        self.texts: list[str] = []
        self._dies_at = dies_at

    def encode(
        self, inputs: Sequence[str], *, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """Return [N, 8]."""
        self.texts += inputs
        if self._dies_at is not None and len(self.texts) >= self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.stack([unit(text, instruction or "") for text in inputs])
