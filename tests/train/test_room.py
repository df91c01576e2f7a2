"""Tests of nvembed_deploy/train/room.py: it says beforehand what tokenising would say later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.spec import Truncation
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.room import Room
from tests import factories


@pytest.mark.parametrize("truncation", list(Truncation))
def test_what_has_no_fault_has_room_for_each_text(tiny_base: Path, truncation: Truncation) -> None:
    spec = replace(factories.TINY.text, truncation=truncation)
    tokenizer = Tokenizer.load(tiny_base / "tokenizer.json", spec)
    room, faults = Room(tokenizer, 90, "tiny"), []
    for length in range(40, 90):
        instruction = "x" * length
        faults.append(room.fault_of(instruction))
        if faults[-1] is None:
            for text in ("a", " a", "\n", "the cat sat on a mat " * 9):
                tokenizer.tokenize([text], instruction, max_tokens=90)
    assert faults[0] is None
    told = [fault for fault in faults if fault]
    assert faults[-len(told) :] == told
    assert "tokens leave no room for a text in text.max_tokens 90" in told[0]
    with pytest.raises(InputError, match="nothing of the text is left"):
        tokenizer.tokenize(["a"], "x" * (90 - len(told) + 1), max_tokens=90)


def test_another_limit_tokenizer_or_template_is_another_room(tiny_base: Path) -> None:
    path, spec = tiny_base / "tokenizer.json", factories.TINY.text
    usual, other = (
        Tokenizer.load(path, each) for each in (spec, replace(spec, instruction_template="x{}"))
    )
    rooms = [Room(usual, 40, "a"), Room(usual, 41, "a"), Room(usual, 40, "b"), Room(other, 40, "a")]
    assert len({room.key for room in rooms}) == 4
    assert Room(usual, 40, "a").key == rooms[0].key
