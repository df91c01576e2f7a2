"""This file owns BM25: how well texts match by their words, and which match best.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009); k1 = 1.5, b = 0.75.
Legend: N texts, V distinct words, P pairs of a word and a text that has it, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.train.data.words import words

_K1, _B = 1.5, 0.75


class Bm25:
    """Texts that can be searched by words."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts."""
        numbers: dict[str, int] = {}
        self._words = [
            np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], np.int32)
            for text in texts
        ]
        total = len(texts)
        lengths_N = np.array([len(own) for own in self._words], np.int64)
        owners = np.repeat(np.arange(total), lengths_N)
        found = np.concatenate([np.empty(0, np.int32), *self._words]).astype(np.int64)
        pairs_P, counts_P = np.unique(found * total + owners, return_counts=True)
        word_P, self._text_P = np.divmod(pairs_P, max(total, 1))
        self._starts_V = np.searchsorted(word_P, np.arange(len(numbers) + 1))
        num_texts_V = np.diff(self._starts_V)
        self._rarity_V = np.log1p((total - num_texts_V + 0.5) / (num_texts_V + 0.5))
        mean = max(len(owners), 1) / max(total, 1)
        slow_N = _K1 * (1 - _B + _B * lengths_N / mean)
        weight_P = self._rarity_V[word_P] * counts_P / (counts_P + slow_N[self._text_P])
        self._weight_P = weight_P.astype(np.float32)

    def scores(self, number: int) -> NDArray[np.float32]:
        """Return how well each text answers the text of that number: [N], 0 without a word."""
        scores_N = np.zeros(len(self._words), np.float32)
        for word, count in zip(*np.unique(self._words[number], return_counts=True), strict=True):
            having = slice(self._starts_V[word], self._starts_V[word + 1])
            scores_N[self._text_P[having]] += np.float32(count) * self._weight_P[having]
        return scores_N

    def share(self, number: int, other: int) -> float:
        """Return how much of a text's words another one has, rare words counting more: 0 to 1."""
        own = self._words[number]
        rarity = self._rarity_V[own]
        return float(rarity[np.isin(own, self._words[other])].sum() / max(rarity.sum(), 1e-9))

    def best(self, number: int, count: int) -> list[int]:
        """Return the numbers of the texts that share words with that one, the best first.

        The text itself is not among them.
        """
        scores_N = self.scores(number)
        scores_N[number] = 0
        top = np.argsort(-scores_N, kind="stable")[:count]
        return [int(i) for i in top if scores_N[i] > 0]
