"""Tests of nvembed_deploy/export/calibration_texts.py."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.calibration_texts import BUILT_IN, Calibration, read_texts
from nvembed_deploy.spec import TextSpec
from nvembed_deploy.text import Tokenizer
from tests import factories


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = factories.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return Tokenizer.load(path, factories.TINY.text)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_built_in_texts_are_256_with_instructions_on_half() -> None:
    texts = list(read_texts(BUILT_IN))
    assert len(texts) == 256
    assert 128 <= sum(bool(text.instruction) for text in texts) < 256
    sources = {json.loads(line)["source"] for line in BUILT_IN.read_text().splitlines()}
    assert sources == {"wordnet", "debian", "python3.11-stdlib", "sympy", "django", "networkx"}


def test_batches_are_the_same_for_the_same_seed(tokenizer: Tokenizer) -> None:
    def ids(seed: int) -> list[bytes]:
        chosen = Calibration(num_texts=70, seed=seed).batches(tokenizer)
        return [batch.input_ids_BS.tobytes() for batch in chosen]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)


def test_every_text_appears_and_instructions_are_masked(tokenizer: Tokenizer) -> None:
    batches = Calibration().batches(tokenizer)
    assert sum(batch.num_texts for batch in batches) == 256 + 64  # first words of every fourth
    masked = [b.attention_mask_BS.sum(1) > b.pool_mask_BS.sum(1) for b in batches]
    assert np.concatenate(masked).sum() == sum(bool(t.instruction) for t in read_texts(BUILT_IN))


def test_the_first_words_of_every_fourth_text_are_texts_too(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    line = {"text": "  one two\nthree four five", "instruction": "find it"}
    path = write(tmp_path / "texts.jsonl", *[line] * 12)
    batches = Calibration(path).batches(tokenizer)
    assert sum(batch.num_texts for batch in batches) == 12 + 3
    openings = tokenizer.tokenize(["one", "one two", "one two three"])
    for row, opening in enumerate(openings):
        kept = batches[0].attention_mask_BS[row] > 0
        assert batches[0].input_ids_BS[row][kept].tolist() == list(opening.ids)


def test_first_words_stay_short_where_words_are_not_parted(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "texts.jsonl", {"text": "x" * 500})
    (batch,) = Calibration(path).batches(tokenizer)
    (expected,) = tokenizer.tokenize(["x" * 24])
    assert batch.attention_mask_BS.sum(1).min() == len(expected.ids)


def test_long_texts_are_cut_after_the_instruction(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = {"text": "word " * 500, "instruction": "a long instruction " * 10}
    path = write(tmp_path / "texts.jsonl", text)
    (batch,) = Calibration(path, max_tokens=20).batches(tokenizer)
    kept = int(batch.pool_mask_BS[-1].sum())  # the first is its opening
    assert 15 <= kept <= 22


def test_few_or_short_texts_are_warned_of(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Calibration(write(tmp_path / "few.jsonl", {"text": "short"})).batches(tokenizer)
    assert "1 texts" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Calibration().batches(tokenizer)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no text"),
        ("\n\n", "holds no text"),
        ('{"text": "a"}\nnonsense\n', "line 2 is not JSON"),
        ('{"tekst": "a"}\n', "line 1 is"),
        ('{"text": 3}\n', "line 1 is"),
        ('{"text": "a", "instruction": 3}\n', "line 1 is"),
        ("[]\n", "line 1 is"),
        (
            '{"text": "a"}\n{"text": "so \\ud83d"}\n',
            r"texts\.jsonl, line 2: text has half of a surrogate pair, .* at character 3",
        ),
        ('{"text": "a", "instruction": "\\udca9"}\n', "line 1: instruction has half"),
        ('{"text": "a"}\n' + "[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(RecipeError, match=problem):
        list(read_texts(path))


def test_lines_end_where_json_lines_do_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u0085d", "e"]
    path = tmp_path / "texts.jsonl"
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    assert [text.text for text in read_texts(path)] == texts


def test_a_whole_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "\\ud83d\\udca9"}\n')
    assert [text.text for text in read_texts(path)] == ["\U0001f4a9"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.jsonl"):
        list(read_texts(tmp_path / "nowhere.jsonl"))


def test_the_texts_are_tokenised_as_encode_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", {"text": "hello", "instruction": "find it"})
    (batch,) = Calibration(path).batches(tokenizer)
    (expected,) = tokenizer.tokenize(["hello"], instruction="find it")
    np.testing.assert_array_equal(batch.input_ids_BS[-1], expected.ids)  # the first is its opening
    assert isinstance(tokenizer.spec, TextSpec)
