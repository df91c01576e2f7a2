"""Tests of nvembed_deploy/train/counts.py: one of a thing has no plural."""

from __future__ import annotations

import pytest

from nvembed_deploy.train.counts import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 texts"), (1, "1 text"), (2, "2 texts"), (1204, "1,204 texts")]
)
def test_one_of_a_thing_has_no_plural(number: int, words: str) -> None:
    assert counted(number, "text") == words
