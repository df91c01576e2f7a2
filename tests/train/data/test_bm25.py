"""Tests of nvembed_deploy/train/data/bm25.py: rare shared words count, empty texts do no harm."""

from __future__ import annotations

import math

import pytest

from nvembed_deploy.train.data.bm25 import Bm25, _words

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, naïve 7", ["don", "t", "stop", "naïve", "7"]),
        ("我爱NLP。你呢", ["我", "爱", "nlp", "你", "呢"]),
        ("コーヒーを2杯", ["コ", "ー", "ヒ", "ー", "を", "2", "杯"]),
        ("날씨가 좋다", ["날", "씨", "가", "좋", "다"]),
        ("ดีมาก ๆ ok", ["ดี", "ีม", "มา", "าก", "ๆ", "ok"]),
    ],
)
def test_scripts_without_spaces_have_characters_for_words(text: str, words: list[str]) -> None:
    assert _words(text) == words
