"""Tests of nvembed_deploy/train/data/nearest.py: the same as sorting all scores, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.train.data import nearest as module
from nvembed_deploy.train.data.nearest import nearest


@pytest.mark.parametrize("block", [3, 7, 50, 64])
@pytest.mark.parametrize("count", [1, 5, 80])
def test_blocks_do_not_change_what_is_found(
    block: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    random = np.random.default_rng(0)
    query_ND, passage_MD = (random.normal(size=(n, 6)).astype(np.float32) for n in (10, 50))
    found = list(nearest(query_ND, passage_MD, count, passage_block=block))
    assert [start for start, _ in found] == [0, 4, 8]
    scores_NM = query_ND @ passage_MD.T
    expected = np.argsort(-scores_NM, axis=1)[:, : min(count, 50)]
    assert np.array_equal(np.concatenate([numbers for _, (_, numbers) in found]), expected)
    scores = np.concatenate([scores for _, (scores, _) in found])
    assert np.allclose(scores, np.take_along_axis(scores_NM, expected, axis=1), atol=1e-6)
