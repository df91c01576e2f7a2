"""This file owns the texts that quantisation is calibrated on: built-in ones, or a user's JSONL."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.calibration_record import TextFacts
from nvembed_deploy.text import Batch, Tokenizer, Tokens, collate, fault_of

logger = logging.getLogger(__name__)

BUILT_IN = Path(__file__).with_name("calibration.jsonl")
"""256 texts: package descriptions, dictionary glosses and code, half of them with instructions."""
_FEW_TEXTS, _FEW_TOKENS = 64, 4000
_TEXTS_AN_OPENING, _OPENING_WORDS, _OPENING_CHARACTERS = 4, 3, 24
BATCH_TEXTS, FEW_BATCHES = 16, 4


@dataclass(frozen=True)
class CalibrationText:
    """A text, and the instruction it is encoded with (empty: a passage)."""

    text: str
    instruction: str = ""


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on: `path` is a JSONL file (None: the built-in texts)."""

    path: Path | None = None
    num_texts: int = 256
    max_tokens: int = 128
    seed: int = 0

    def batches(self, tokenizer: Tokenizer) -> list[Batch]:
        """Return the chosen texts as batches of similar length, tokenised by the product itself.

        The first words of every fourth come as texts of their own: of two or three tokens a model
        makes states that it makes of no longer text, and few files have such texts. Warns where
        the texts are too few or too short to be trusted.

        Raises:
            RecipeError: the file is missing, empty, or a line of it is not what it should be.
        """
        texts = list(read_texts(self.path or BUILT_IN))
        if len(texts) > self.num_texts:
            chosen = sorted(random.Random(self.seed).sample(range(len(texts)), self.num_texts))
            texts = [texts[i] for i in chosen]
        tokens = _tokenize(texts, tokenizer, self.max_tokens)
        _warn(self.path or BUILT_IN, tokens)
        tokens += _tokenize(list(_openings(texts)), tokenizer, self.max_tokens)
        tokens.sort(key=lambda text: len(text.ids))
        pad = tokenizer.spec.pad_id
        starts = range(0, len(tokens), BATCH_TEXTS)
        return [collate(tokens[start : start + BATCH_TEXTS], pad) for start in starts]

    def facts(self, batches: Sequence[Batch]) -> TextFacts:
        """Return what the record of a calibration on these batches says of them."""
        digest = hashlib.sha256()
        for batch in batches:
            for array in (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS):
                digest.update(str(array.shape).encode() + array.tobytes())
        num_tokens = sum(batch.num_tokens for batch in batches)
        num_texts = sum(batch.num_texts for batch in batches)
        return TextFacts(digest.hexdigest(), num_texts, num_tokens, self.seed)


def few_of(batches: Sequence[Batch]) -> list[Batch]:
    """Return a few batches, evenly spread over lengths: to measure an order, not a value."""
    places = sorted({len(batches) * i // FEW_BATCHES for i in range(FEW_BATCHES)})
    return [batches[i] for i in places]


def read_texts(path: Path, role: str = "calibration") -> Iterator[CalibrationText]:
    """Yield the texts of a JSONL file: `text`, and `instruction` where there is one.

    Args:
        path: the file.
        role: what it is for; messages begin with it.

    Raises:
        RecipeError: the file is missing or empty, or a line is not such an object, or its text
            holds half of a surrogate pair.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{role} {path} cannot be read: {error}", 'give a file of {"text": ...} lines'
        ) from error
    found = False
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = True
            yield _text(line, f"{role} {path}, line {number}")
    if not found:
        raise RecipeError(f"{role} {path} holds no text", 'give a line of {"text": ...} each')


def _text(line: str, where: str) -> CalibrationText:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not JSON: {error}", "correct that line") from error
    text = record.get("text") if isinstance(record, dict) else None
    instruction = record.get("instruction", "") if isinstance(record, dict) else ""
    if not isinstance(text, str) or not isinstance(instruction, str):
        raise RecipeError(
            f"{where} is {line[:80]!r}",
            'expected {"text": "...", "instruction": "..."}, instruction only for queries',
        )
    for key, value in (("text", text), ("instruction", instruction)):
        fault = fault_of(value)
        if fault:
            raise RecipeError(
                f"{where}: {key} {fault}", "correct that line: both halves, or neither"
            )
    return CalibrationText(text, instruction)


def _openings(texts: list[CalibrationText]) -> Iterator[CalibrationText]:
    """Yield one, two or three words in turn, as passages."""
    for number, text in enumerate(texts[::_TEXTS_AN_OPENING]):
        words = text.text.split()[: 1 + number % _OPENING_WORDS]
        yield CalibrationText(" ".join(words)[:_OPENING_CHARACTERS])


def _tokenize(texts: list[CalibrationText], tokenizer: Tokenizer, max_tokens: int) -> list[Tokens]:
    tokens: list[Tokens] = []
    for text in texts:
        (empty,) = tokenizer.tokenize([""], instruction=text.instruction, max_tokens=sys.maxsize)
        limit = max_tokens + len(empty.ids)
        tokens += tokenizer.tokenize([text.text], instruction=text.instruction, max_tokens=limit)
    return tokens


def _warn(path: Path, tokens: list[Tokens]) -> None:
    num_tokens = sum(len(text.ids) for text in tokens)
    if len(tokens) < _FEW_TEXTS or num_tokens < _FEW_TOKENS:
        logger.warning(
            "calibration %s has %d texts and %d tokens: rounding fitted to so few may not hold on "
            "others (%d texts and %d tokens are the least to trust)",
            path,
            len(tokens),
            num_tokens,
            _FEW_TEXTS,
            _FEW_TOKENS,
        )
