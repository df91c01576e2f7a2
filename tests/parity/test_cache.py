"""Tests of nvembed_deploy/parity/cache.py: each text once, and a kill loses nothing whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.parity.cache import EmbeddingCache, text_key


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 4), np.float32)


def keys(*texts: str) -> list[bytes]:
    return [text_key("", text) for text in texts]


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "m", 4)
    assert cache.missing(keys("a", "b", "a")) == [0, 1]
    cache.add(keys("a", "b"), rows(2))
    for opened in (cache, EmbeddingCache(tmp_path / "m", 4)):
        assert opened.missing(keys("b", "c", "a")) == [1]
        assert np.array_equal(opened.get(keys("b", "a", "b")), rows(2)[[1, 0, 1]])


@pytest.mark.parametrize(("name", "cut"), [("keys.bin", 5), ("rows.bin", 3)])
def test_a_write_that_was_cut_short_is_forgotten(tmp_path: Path, name: str, cut: int) -> None:
    cache = EmbeddingCache(tmp_path, 4)
    cache.add(keys("a", "b"), rows(2))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-cut])
    again = EmbeddingCache(tmp_path, 4)
    assert again.missing(keys("a", "b")) == [1]
    again.add(keys("b"), rows(2)[1:])
    assert np.array_equal(EmbeddingCache(tmp_path, 4).get(keys("a", "b")), rows(2))


def test_an_instruction_is_part_of_the_text() -> None:
    assert len({text_key("a", "b"), text_key("", "ab"), text_key("ab", ""), text_key("", "b")}) == 4
    assert len(text_key("", "half \ud800 pair")) == 32
