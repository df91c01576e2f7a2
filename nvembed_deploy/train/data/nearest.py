"""This file owns the search for the nearest passages: the only import of `faiss`.

The search is exact. Passages may lie in a memory-mapped file larger than memory: they are read
block by block, and each block's best are merged with the best so far.
Legend: N queries, M passages, D hidden, K best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import MissingPackageError

QUERY_BLOCK, PASSAGE_BLOCK = 4096, 65_536
Best = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and passage numbers, both [N, K], the best first."""


@dataclass(frozen=True)
class Search:
    """Which queries look for how many of which passages, by their numbers."""

    queries: NDArray[np.int64]
    count: int
    """A query; all passages if there are fewer."""
    passages: NDArray[np.int64] | None = None
    """In order; None is all."""


def nearest(
    query_ND: NDArray[np.float32],
    passage_MD: NDArray[np.float32],
    search: Search,
    *,
    passage_block: int = PASSAGE_BLOCK,
) -> Iterator[tuple[NDArray[np.int64], Best]]:
    """Yield (numbers of queries, their best passages by inner product), block by block.

    Args:
        query_ND: float32 rows; may be a memory map.
        passage_MD: float32 rows; may be a memory map.
        search: what is looked for.
        passage_block: rows that are in memory at a time.

    Raises:
        MissingPackageError: faiss is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "searching passages needs faiss, which is not installed",
            "pip install 'nvembed-deploy[train]'",
        ) from error
    total = len(passage_MD) if search.passages is None else len(search.passages)
    for start in range(0, len(search.queries), QUERY_BLOCK):
        queries = search.queries[start : start + QUERY_BLOCK]
        queries_ND = np.ascontiguousarray(query_ND[queries])
        best: Best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for first in range(0, total, passage_block):
            block_MD, numbers_M = _block(passage_MD, search.passages, first, passage_block)
            k = min(search.count, len(block_MD))
            scores_NK, numbers_NK = faiss.knn(
                queries_ND, block_MD, k, metric=faiss.METRIC_INNER_PRODUCT
            )
            best = _merge(best, (scores_NK, numbers_M[numbers_NK]), search.count)
        yield queries, best


def _block(
    passage_MD: NDArray[np.float32], numbers_M: NDArray[np.int64] | None, first: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return some of the passages that are searched, and their numbers."""
    if numbers_M is None:  # a view of a memory map; by number it would be a copy
        block_MD = np.ascontiguousarray(passage_MD[first : first + size])
        return block_MD, np.arange(first, first + len(block_MD))
    chosen_M = numbers_M[first : first + size]
    return np.ascontiguousarray(passage_MD[chosen_M]), chosen_M


def _merge(one: Best, other: Best, count: int) -> Best:
    scores_NK = np.concatenate([one[0], other[0]], axis=1)
    numbers_NK = np.concatenate([one[1], other[1]], axis=1)
    order_NK = np.argsort(-scores_NK, axis=1, kind="stable")[:, :count]
    return (
        np.take_along_axis(scores_NK, order_NK, axis=1),
        np.take_along_axis(numbers_NK, order_NK, axis=1),
    )
