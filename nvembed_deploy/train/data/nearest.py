"""This file owns the search for the nearest passages: the only import of `faiss`.

The search is exact. Passages may lie in a memory-mapped file larger than memory: they are read
block by block, and each block's best are merged with the best so far.
Legend: N queries, M passages, D hidden, K best.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import MissingPackageError

QUERY_BLOCK, PASSAGE_BLOCK = 4096, 65_536
Best = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and passage numbers, both [N, K], the best first."""


def nearest(
    query_ND: NDArray[np.float32],
    passage_MD: NDArray[np.float32],
    count: int,
    *,
    passage_block: int = PASSAGE_BLOCK,
) -> Iterator[tuple[int, Best]]:
    """Yield (number of the first query, best passages by inner product) for blocks of queries.

    Args:
        query_ND: float32 rows.
        passage_MD: float32 rows; may be a memory map.
        count: how many a query; all passages if there are fewer.
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
    for start in range(0, len(query_ND), QUERY_BLOCK):
        queries_ND = np.ascontiguousarray(query_ND[start : start + QUERY_BLOCK])
        best: Best | None = None
        for first in range(0, len(passage_MD), passage_block):
            block_MD = np.ascontiguousarray(passage_MD[first : first + passage_block])
            k = min(count, len(block_MD))
            scores_NK, numbers_NK = faiss.knn(
                queries_ND, block_MD, k, metric=faiss.METRIC_INNER_PRODUCT
            )
            found = scores_NK, numbers_NK.astype(np.int64) + first
            best = found if best is None else _merge(best, found, count)
        assert best is not None
        yield start, best


def _merge(one: Best, other: Best, count: int) -> Best:
    scores_NK = np.concatenate([one[0], other[0]], axis=1)
    numbers_NK = np.concatenate([one[1], other[1]], axis=1)
    order_NK = np.argsort(-scores_NK, axis=1, kind="stable")[:, :count]
    return (
        np.take_along_axis(scores_NK, order_NK, axis=1),
        np.take_along_axis(numbers_NK, order_NK, axis=1),
    )
