"""This file owns BM25: the only import of `bm25s`, words, scores and the best matches.

Where a script has no spaces, or endings that are part of the word, characters stand for words.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); k1 = 1.5, b = 0.75.
Legend: N texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import MissingPackageError

_ALONE = (
    r"\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Chinese characters, kana and Hangul: each is a word. Of 60 Chinese sentences of 9 to 12
characters of which one was changed, `overlap.py` finds all so, 29 by pairs of characters."""
_IN_PAIRS = r"\u0e01-\u0e3a\u0e40-\u0e5b\u0e81-\u0edf"
"""Thai and Lao: letters are too few to tell texts apart, so two in a row are a word."""
_CHARACTER = re.compile(f"[{_ALONE}]")
_WORD = re.compile(rf"[{_ALONE}]|([{_IN_PAIRS}]+)|[^\W{_ALONE}{_IN_PAIRS}]+")


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
        self.lengths_N = np.array([len(words) for words in self._words], np.int64)
        self._index = BM25(k1=1.5, b=0.75, method="lucene")
        self._is_empty = not any(self._words)
        if not self._is_empty:
            self._index.index(self._words, show_progress=False)

    def is_of_characters(self, number: int) -> bool:
        """Return whether most words of the text of that number are characters."""
        words = self._words[number]
        return 2 * sum(_CHARACTER.fullmatch(word) is not None for word in words) > len(words)

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
    words: list[str] = []
    for found in _WORD.finditer(text.lower()):
        words += _pairs(found[0]) if found[1] else [found[0]]
    return words


def _pairs(letters: str) -> list[str]:
    """Return each two letters in a row; a single one is alone."""
    return [letters[i : i + 2] for i in range(max(len(letters) - 1, 1))]
