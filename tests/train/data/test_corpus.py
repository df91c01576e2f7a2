"""Tests of nvembed_deploy/train/data/corpus.py: titles go first, bad lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.corpus import read_corpus
from nvembed_deploy.train.data.rows import Faults
from tests.train.data import raw


def test_passages_are_distinct_texts_after_their_titles(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b", "title": "B"}, {"text": "a", "title": " "}]
    path = raw.write(tmp_path / "corpus.jsonl", rows)
    assert read_corpus(path, Faults(stop=True)) == ["a", "B b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"body": "x"}, "text is None, expected a text"),
        ({"text": " "}, "text is empty"),
        ({"text": "\ud800"}, "text is no valid Unicode"),
        ({"text": "x", "title": 7}, "title is 7, expected a text"),
        ("{", "broken JSON"),
    ],
)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: object, reason: str) -> None:
    path = raw.write(tmp_path / "corpus.jsonl", [{"text": "a"}, line])
    with pytest.raises(InputError, match=f"line 2: {reason}"):
        read_corpus(path, Faults(stop=True))
    faults = Faults(stop=False)
    assert read_corpus(path, faults) == ["a"]
    assert faults.counts == {reason: 1}


def test_an_empty_corpus_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no text"):
        read_corpus(raw.write(tmp_path / "corpus.jsonl", []), Faults(stop=True))
