"""Tests of nvembed_deploy/train/data/nearest.py: the same as sorting all scores, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.train.data import nearest as module
from nvembed_deploy.train.data.nearest import Near, nearest

HIDDEN = {3: [np.array([2, 3, 49]), np.array([0, 7, 31])], 5: [np.arange(50)]}


@pytest.mark.parametrize("block", [3, 7, 50, 64])
@pytest.mark.parametrize("count", [1, 5, 50, 80])
def test_blocks_do_not_change_what_is_found(
    block: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    monkeypatch.setattr(module, "PASSAGE_BLOCK", block)
    random = np.random.default_rng(0)
    query_ND, passage_MD = (random.normal(size=(n, 6)).astype(np.float32) for n in (10, 50))
    found = list(nearest(query_ND, passage_MD, count, lambda n: HIDDEN.get(n, [])))
    assert len(found) == 10
    for query, near in enumerate(found):
        scores_M = passage_MD @ query_ND[query]
        shown = set(range(50)).difference(*HIDDEN.get(query, []))
        expected = sorted(shown, key=lambda n: -scores_M[n])[:count]
        assert near.numbers_K.tolist() == expected
        assert np.allclose(near.scores_K, scores_M[expected], atol=1e-6)


@pytest.mark.parametrize("block", [3, 64])
def test_equal_passages_are_in_order_of_number(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASSAGE_BLOCK", block)
    passage_MD = np.float32([[2], [1], [2], [1], [2], [1]])
    (near,) = nearest(np.ones((1, 1), np.float32), passage_MD, 6, lambda _: [])
    assert near.numbers_K.tolist() == [0, 2, 4, 1, 3, 5]


def test_there_may_be_nothing_to_find() -> None:
    query_ND, none_MD = np.ones((2, 3), np.float32), np.empty((0, 3), np.float32)
    assert [near.numbers_K.tolist() for near in nearest(query_ND, none_MD, 4, lambda _: [])] == [
        [],
        [],
    ]


def test_near_passages_can_be_put_before_others() -> None:
    near = Near(np.array([3, 1]), np.float32([0.7, 0.6])).before(
        Near(np.array([9]), np.float32([0.5]))
    )
    assert near.numbers_K.tolist() == [3, 1, 9]
    assert near.scores_K.tolist() == np.float32([0.7, 0.6, 0.5]).tolist()
