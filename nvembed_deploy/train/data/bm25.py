"""This file owns BM25: the only import of `bm25s`, scores and the best matches.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); k1 = 1.5, b = 0.75.
Legend: N texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from math import log1p

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import MissingPackageError
from nvembed_deploy.train.data.words import words


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
        self._words = [words(text) for text in texts]
        self._num_having = Counter(chain.from_iterable(map(set, self._words)))
        self._index = BM25(k1=1.5, b=0.75, method="lucene")
        if self._num_having:
            self._index.index(self._words, show_progress=False)

    def scores(self, number: int) -> NDArray[np.float32]:
        """Return how well each text answers the text of that number: [N], 0 without a word."""
        own = self._words[number]
        if not own:
            return np.zeros(len(self._words), np.float32)
        scores_N: NDArray[np.float32] = self._index.get_scores(own)
        return scores_N

    def share(self, number: int, other: int) -> float:
        """Return how much of a text's words another one has, rare words counting more: 0 to 1."""
        own, its = self._words[number], set(self._words[other])
        total = sum(map(self._rarity, own))
        return sum(self._rarity(word) for word in own if word in its) / total if total else 0.0

    def best(self, number: int, count: int) -> list[int]:
        """Return the numbers of the texts that share words with that one, the best first.

        The text itself is not among them.
        """
        scores_N = self.scores(number)
        scores_N[number] = 0
        top = np.argsort(-scores_N, kind="stable")[:count]
        return [int(i) for i in top if scores_N[i] > 0]

    def _rarity(self, word: str) -> float:
        """Return BM25's own weight of a word."""
        having = self._num_having[word]
        return log1p((len(self._words) - having + 0.5) / (having + 0.5))
