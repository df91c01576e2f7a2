"""This file owns BM25: the only import of `bm25s`, words, scores and the best matches.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); k1 = 1.5, b = 0.75.
Legend: N texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import MissingPackageError

_WORD = re.compile(r"\w+")


class Bm25:
    """Texts that can be searched by words."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts.

        Raises:
            MissingPackageError: bm25s is not installed.
        """
        try:
            from bm25s import BM25  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "comparing texts by BM25 needs bm25s, which is not installed",
                "pip install 'nvembed-deploy[train]'",
            ) from error
        self._words = [_words(text) for text in texts]
        self._index = BM25(k1=1.5, b=0.75, method="lucene")
        self._is_empty = not any(self._words)
        if not self._is_empty:
            self._index.index(self._words, show_progress=False)

    def scores(self, number: int) -> NDArray[np.float32]:
        """Return how well each text answers the text of that number: [N], 0 without a word."""
        words = self._words[number]
        if not words:
            return np.zeros(len(self._words), np.float32)
        scores_N: NDArray[np.float32] = self._index.get_scores(words)
        return scores_N

    def best(self, number: int, count: int) -> list[int]:
        """Return the numbers of the texts that share words with that one, the best first.

        The text itself is not among them.
        """
        scores_N = self.scores(number)
        scores_N[number] = 0
        top = np.argsort(-scores_N, kind="stable")[:count]
        return [int(i) for i in top if scores_N[i] > 0]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
