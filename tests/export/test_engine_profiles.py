"""Tests of nvembed_deploy/export/engine_profiles.py: shapes for any model and any texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from nvembed_deploy.engine_record import Shape
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.engine_profiles import (
    BUDGET_TOKENS,
    default_profiles,
    profiles_for,
    read_lengths,
)
from nvembed_deploy.text import Tokenizer
from tests.factories import TINY, write_tokenizer


@pytest.mark.parametrize("max_tokens", [3, 64, 512, 513, 4096, 32768])
def test_a_text_of_any_length_fits_whatever_the_model_takes(max_tokens: int) -> None:
    profiles = default_profiles(max_tokens, 2)
    for length in (1, 2, 3, max_tokens // 2, max_tokens):
        assert any(p.holds(Shape(1, length)) for p in profiles), length
    assert not any(p.holds(Shape(1, max_tokens + 1)) for p in profiles)


def test_nv_embed_gets_one_profile_for_each_habit() -> None:
    latency, throughput, long = default_profiles(4096, 2)
    assert (latency.name, throughput.name, long.name) == ("latency", "throughput", "long")
    assert latency.opt == Shape(1, 128)
    assert latency.max == Shape(8, 512)
    assert throughput.opt == Shape(64, 128)
    assert throughput.max == Shape(64, 512)
    assert long.max == Shape(4, 4096)


def test_measured_lengths_move_the_profiles() -> None:
    lengths = [40] * 90 + [300] * 9 + [700]
    latency, throughput, long = profiles_for(lengths, 4096, 2)
    assert latency.opt == Shape(1, 40)
    assert latency.max.sequence == 320, "the 99th percentile, rounded up to 64"
    assert throughput.opt.batch * throughput.opt.sequence <= BUDGET_TOKENS
    assert long.max.sequence == 4096, "longer than any text seen"


def test_long_texts_make_fewer_in_a_batch_not_a_larger_one() -> None:
    """64 x 4032 tokens took 7.4 GB for one layer of NV-Embed's width; `encode` sends 8192."""
    latency, throughput, long = profiles_for([1500] * 90 + [4000] * 10, 4096, 2)
    assert (latency.max, throughput.max) == (Shape(8, 4032), Shape(8, 4032))
    assert throughput.opt == Shape(5, 1500)
    assert long.max == Shape(4, 4096)


def test_a_few_long_texts_leave_room_for_many_short_ones() -> None:
    latency, throughput, _ = profiles_for([100] * 90 + [4000] * 10, 4096, 2)
    assert (throughput.opt, throughput.max) == (Shape(64, 100), Shape(64, 512))
    assert latency.max == Shape(8, 4032)


@pytest.mark.parametrize("max_tokens", [8192, 16384, 32768, 131072])
@pytest.mark.parametrize("typical", [1, 128, 5000, 100000])
def test_no_batch_is_larger_than_memory_was_meant_for(max_tokens: int, typical: int) -> None:
    for profile in profiles_for([typical], max_tokens, 2):
        batch, tokens = profile.max
        assert batch == 1 or batch * tokens <= 32768


def test_any_lengths_give_profiles_that_are_valid() -> None:
    generator = random.Random(0)
    for _ in range(300):
        max_tokens = generator.randint(3, 5000)
        lengths = [generator.randint(0, 6000) for _ in range(generator.randint(1, 40))]
        assert any(p.max.sequence == max_tokens for p in profiles_for(lengths, max_tokens, 2))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path / "tokenizer.json"), TINY.text)


def test_lengths_are_counted_as_the_model_will_see_them(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "hello"}, {"text": "hello", "instruction": "Find it"}, {"text": ""}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert read_lengths(path, tokenizer) == [
        len(tokenizer.tokenize(["hello"])[0].ids),
        len(tokenizer.tokenize(["hello"], instruction="Find it")[0].ids),
        2,
    ]


@pytest.mark.parametrize("line", ["", "no json", "[]", '{"text": 3}'])
def test_what_holds_no_texts_is_named(tmp_path: Path, tokenizer: Tokenizer, line: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"profile_from .*texts\.jsonl"):
        read_lengths(path, tokenizer)
    with pytest.raises(RecipeError, match="profile_from"):
        read_lengths(tmp_path / "missing.jsonl", tokenizer)
