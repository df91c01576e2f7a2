"""Tests of nvembed_deploy/train/data/bm25.py: rare shared words count, empty texts do no harm."""

from __future__ import annotations

import math

import pytest

from nvembed_deploy.train.data.bm25 import Bm25

TEXTS = ["the cat sat", "the cat ran", "the dog ran far away", "", "THE, CAT! sat?", "zebra"]


def test_a_score_is_the_published_formula() -> None:
    texts = ["a b b", "a c", "d"]
    length, mean = 3, 2
    idf = {"a": math.log(1 + 1.5 / 2.5), "b": math.log(1 + 2.5 / 1.5)}
    saturated = {
        word: n / (n + 1.5 * (0.25 + 0.75 * length / mean)) for word, n in (("a", 1), ("b", 2))
    }
    expected = idf["a"] * saturated["a"] + 2 * idf["b"] * saturated["b"]
    assert Bm25(texts).scores(0)[0] == pytest.approx(expected, rel=1e-6)


def test_the_best_share_the_rarest_words_and_never_are_the_text_itself() -> None:
    index = Bm25(TEXTS)
    assert index.best(0, 3) == [4, 1, 2]
    assert index.best(0, 1) == [4]
    assert index.best(5, 3) == []


@pytest.mark.parametrize("texts", [["", "?"], ["", "a"]])
def test_a_text_without_words_matches_nothing(texts: list[str]) -> None:
    index = Bm25(texts)
    assert index.scores(0).tolist() == [0, 0]
    assert index.best(0, 2) == []


def test_a_share_is_by_rarity_and_has_a_side() -> None:
    index = Bm25(["a b", "a a c", "a", "a"])
    rare, common = math.log(1 + 3.5 / 1.5), math.log(1 + 0.5 / 4.5)
    assert index.share(0, 1) == pytest.approx(common / (common + rare))
    assert index.share(1, 0) == pytest.approx(2 * common / (2 * common + rare))
    assert (index.share(2, 0), index.share(0, 0)) == (1, 1)


def test_no_text_can_be_indexed() -> None:
    assert Bm25([])._words == []
