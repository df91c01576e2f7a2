"""Tests of nvembed_deploy/train/data/lengths.py: counts that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.lengths import Lengths, aligned, load_tokenizer
from tests import factories


def test_percentiles_are_lengths_that_occur() -> None:
    lengths = Lengths()
    for count in range(1, 101):
        row = {"source": "s", "query": "w " * count, "positive": "one", "negatives": ["a b"]}
        lengths.add(row)
    header, query, positive, negative = (line.split() for line in lengths.table().splitlines())
    assert header == ["source", "part", "texts", "unit", "p50", "p90", "p99", "max"]
    assert query == ["s", "query", "100", "words", "50", "90", "99", "100"]
    assert positive[3:] == ["words", "1", "1", "1", "1"]
    assert negative == ["s", "negative", "100", "words", "2", "2", "2", "2"]


def test_tokens_are_the_tokenizers_own(tmp_path: Path) -> None:
    factories.write_tokenizer(tmp_path / "tokenizer.json")
    lengths = Lengths(load_tokenizer(tmp_path))
    for _ in range(1500):  # more than one batch
        lengths.add({"query": "the cat", "positive": "x"})
    tokens = len(load_tokenizer(tmp_path / "tokenizer.json").encode("the cat").ids)
    assert lengths.table().splitlines()[2].split() == ["tokens", *[str(tokens)] * 4]


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_columns_are_aligned() -> None:
    assert aligned([("a", "b", "10"), ("long", "", "7")]) == "a     b  10\nlong      7"
