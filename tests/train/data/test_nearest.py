"""Tests of nvembed_deploy/train/data/nearest.py: the same as sorting all scores, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.train.data import nearest as module
from nvembed_deploy.train.data.nearest import Search, nearest


@pytest.mark.parametrize("block", [3, 7, 50, 64])
@pytest.mark.parametrize("count", [1, 5, 80])
def test_blocks_do_not_change_what_is_found(
    block: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    random = np.random.default_rng(0)
    query_ND, passage_MD = (random.normal(size=(n, 6)).astype(np.float32) for n in (10, 50))
    search = Search(np.arange(10), count)
    found = list(nearest(query_ND, passage_MD, search, passage_block=block))
    assert [queries.tolist() for queries, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    scores_NM = query_ND @ passage_MD.T
    expected = np.argsort(-scores_NM, axis=1)[:, : min(count, 50)]
    assert np.array_equal(np.concatenate([numbers for _, (_, numbers) in found]), expected)
    scores = np.concatenate([scores for _, (scores, _) in found])
    assert np.allclose(scores, np.take_along_axis(scores_NM, expected, axis=1), atol=1e-6)


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("passages", [[], [7], [0, 3, 4, 9, 11, 30, 49]])
def test_a_search_may_be_of_some_queries_and_passages(block: int, passages: list[int]) -> None:
    random = np.random.default_rng(0)
    query_ND, passage_MD = (random.normal(size=(n, 6)).astype(np.float32) for n in (10, 50))
    search = Search(np.array([8, 2]), 4, np.array(passages, np.int64))
    ((queries, (scores, numbers)),) = nearest(query_ND, passage_MD, search, passage_block=block)
    assert queries.tolist() == [8, 2]
    for row, query in enumerate(queries):
        scores_M = passage_MD @ query_ND[query]
        expected = sorted(passages, key=lambda n: -scores_M[n])[:4]
        assert numbers[row].tolist() == expected
        assert np.allclose(scores[row], scores_M[expected], atol=1e-6)
