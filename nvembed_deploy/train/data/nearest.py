"""This file owns the search for the nearest passages of each query, beside those it must not find.

The search is exact. Passages may lie in a memory-mapped file larger than memory: they are read
block by block, and each block's best are merged with the best so far.
Legend: N queries, M passages, D hidden, K best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUERY_BLOCK, PASSAGE_BLOCK = 1024, 16_384


@dataclass(frozen=True)
class Near:
    """Passages by number, the nearest first, and their scores."""

    numbers_K: NDArray[np.int64]
    scores_K: NDArray[np.float32]

    def before(self, other: Near) -> Near:
        """Return both, these first."""
        return Near(
            np.concatenate([self.numbers_K, other.numbers_K]),
            np.concatenate([self.scores_K, other.scores_K]),
        )


def nearest(
    query_ND: NDArray[np.float32],
    passage_MD: NDArray[np.float32],
    count: int,
    hidden: Callable[[int], Iterable[NDArray[np.int64]]],
) -> Iterator[Near]:
    """Yield for each query its best passages by inner product, equal ones in order of number.

    Where not all of some equal ones are among the best, those that are may be any of them.

    Args:
        query_ND: float32 rows; may be a memory map.
        passage_MD: float32 rows; may be a memory map.
        count: of passages a query; all if there are fewer.
        hidden: takes a query's number; returns numbers of passages, in order, that are not for it.
    """
    for start in range(0, len(query_ND), QUERY_BLOCK):
        block_ND = np.asarray(query_ND[start : start + QUERY_BLOCK])
        hidden_N = [list(hidden(start + row)) for row in range(len(block_ND))]
        numbers_NK = np.empty((len(block_ND), 0), np.int64)
        scores_NK = np.empty((len(block_ND), 0), np.float32)
        for first in range(0, len(passage_MD), PASSAGE_BLOCK):
            scores_NM = block_ND @ passage_MD[first : first + PASSAGE_BLOCK].T
            _hide(scores_NM, hidden_N, first)
            best_NK = _best(scores_NM, count)
            best_scores_NK = np.take_along_axis(scores_NM, best_NK, axis=1)
            numbers_NK = np.concatenate([numbers_NK, best_NK + first], axis=1)
            scores_NK = np.concatenate([scores_NK, best_scores_NK], axis=1)
            order_NK = np.argsort(-scores_NK, axis=1, kind="stable")[:, :count]
            numbers_NK = np.take_along_axis(numbers_NK, order_NK, axis=1)
            scores_NK = np.take_along_axis(scores_NK, order_NK, axis=1)
        for numbers_K, scores_K in zip(numbers_NK, scores_NK, strict=True):
            is_found_K = scores_K > -np.inf
            yield Near(numbers_K[is_found_K], scores_K[is_found_K])


def _hide(
    scores_NM: NDArray[np.float32], hidden_N: list[list[NDArray[np.int64]]], first: int
) -> None:
    """Take passages out of the search of each query; `first` is the number of the first column."""
    for row, several in enumerate(hidden_N):
        for numbers in several:
            here = slice(*np.searchsorted(numbers, (first, first + scores_NM.shape[1])))
            scores_NM[row, numbers[here] - first] = -np.inf


def _best(scores_NM: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the columns of the best scores of each row, in order of their numbers: [N, K]."""
    columns = scores_NM.shape[1]
    if columns <= count:
        return np.broadcast_to(np.arange(columns), scores_NM.shape)
    return np.sort(np.argpartition(scores_NM, columns - count, axis=1)[:, -count:], axis=1)
