"""Tests of nvembed_deploy/train/batch.py: which row answers which query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.batch import make_batch
from nvembed_deploy.train.example import Example
from nvembed_deploy.train.recipe import TextSection
from tests import factories

EXAMPLES = [
    Example("retrieval", "find it", "the cat", "sat on a mat", ("another text", "many words")),
    Example("sts", "alike", "a cat", "another cat", ("the cat",)),
    Example("retrieval", "", "of many words", "sat on a mat", ()),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.load(tiny_base / "tokenizer.json", factories.TINY.text)


def test_rows_are_queries_then_positives_then_negatives(tokenizer: Tokenizer) -> None:
    batch = make_batch(EXAMPLES, tokenizer, TextSection(max_tokens=64))
    texts = [
        *[(e.query, e.instruction) for e in EXAMPLES],
        ("sat on a mat", ""),
        ("another cat", "alike"),
        ("sat on a mat", ""),
        ("another text", ""),
        ("many words", ""),
        ("the cat", "alike"),
    ]
    for row, (text, instruction) in zip(batch.rows, texts, strict=True):
        (expected,) = tokenizer.tokenize([text], instruction)
        assert (row.ids.tolist(), row.num_masked) == (expected.ids.tolist(), expected.num_masked)
    assert batch.num_queries == 3
    assert batch.owner_P.tolist() == [0, 1, 2, 0, 0, 1]


def test_the_same_text_is_never_its_own_negative(tokenizer: Tokenizer) -> None:
    batch = make_batch(EXAMPLES, tokenizer, TextSection(max_tokens=64))
    dropped = np.argwhere(~batch.keep_QP).tolist()
    # query 0 and 2 have one positive in common; passage 5 is query 0 itself
    assert dropped == [[0, 2], [0, 5], [2, 0]]


def test_no_known_positive_of_a_query_is_its_negative(tokenizer: Tokenizer) -> None:
    def row(positive: str, *negatives: str, instruction: str = "find it") -> Example:
        return Example("retrieval", instruction, "the cat", positive, negatives)

    rows = [row("a mat"), row("a text", "a mat", "many words"), row("words", instruction="alike")]
    other = Example("retrieval", "find it", "a cat", "a text")
    batch = make_batch([*rows, other], tokenizer, TextSection(max_tokens=64))
    dropped = np.argwhere(~batch.keep_QP).tolist()
    # rows 0 and 1 ask the same: "a mat" (passages 0 and 4) and "a text" (1 and 3) answer both;
    # row 2 asks it under another instruction, row 3 something else
    assert dropped == [[0, 1], [0, 3], [0, 4], [1, 0], [1, 3], [1, 4], [3, 1]]


def test_only_texts_that_lose_their_end_are_counted_as_cut(tokenizer: Tokenizer) -> None:
    long = Example("retrieval", "", "cat " * 90, "mat", ())
    assert make_batch([long, *EXAMPLES], tokenizer, TextSection(max_tokens=64)).truncated == 1
    (whole,) = tokenizer.tokenize(["cat " * 20], "find it")
    fits = Example("retrieval", "find it", "cat " * 20, "mat", ())
    for limit, cut in ((len(whole.ids), 0), (len(whole.ids) - 1, 1)):
        assert make_batch([fits], tokenizer, TextSection(max_tokens=limit)).truncated == cut


def test_an_instruction_without_room_is_refused_by_name(tokenizer: Tokenizer) -> None:
    example = Example("retrieval", "many words " * 40, "the cat", "mat", ())
    with pytest.raises(InputError, match="with the instruction 'many words"):
        make_batch([example], tokenizer, TextSection(max_tokens=64))
