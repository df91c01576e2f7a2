"""This file owns where a long text may be cut before it is tokenised, so that no id changes.

A text of 20 MB takes the tokenizer 1.4 GiB and two minutes, and then 4,096 tokens of it are kept.
Cut before a space after a letter or digit, the beginning has the ids that it has in the whole text
if no token and no split lies across that place. That is known of two kinds:

- sentencepiece's BPE (Mistral, Llama 2): the text is one word and merges go where they may, but no
  token of the vocabulary goes on over a space;
- byte-level BPE (GPT-2, SmolLM, Llama 3): the text is first split into words by a pattern of which
  every match has its space in front, or is white space alone.

Of all others (and of scripts without spaces) whole texts are tokenised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: tokenizer.json of Llama 3; llama.cpp's LLAMA_VOCAB_PRE_TYPE_LLAMA3."""
_SPACE = "\u2581"
_CUT = re.compile(r"(?<=\w) ")
_CHARACTERS_A_TOKEN = 8
"""Twice what English takes. Where it was too few, the whole text is tokenised after all."""


class Heads:
    """The beginnings of texts, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look at the tokenizer when the first long text comes."""
        self._tokenizer = tokenizer

    def of(self, text: str, max_tokens: int) -> str:
        """Return a text's beginning, of likely more tokens than these, else the same object.

        What is no string, or no Unicode, is for the tokenizer to refuse.
        """
        least = max_tokens * _CHARACTERS_A_TOKEN
        if not isinstance(text, str) or len(text) <= least or not self._are_exact:
            return text
        cut = _CUT.search(text, least)
        try:
            text.encode()
        except UnicodeEncodeError:
            return text
        return text[: cut.start()] if cut else text

    @cached_property
    def _are_exact(self) -> bool:
        return has_heads(self._tokenizer)


def has_heads(tokenizer: Tokenizer) -> bool:
    """Say whether a text's beginning has the ids that the text begins with, up to any `_CUT`."""
    model, added = tokenizer.model, tokenizer.get_added_tokens_decoder().values()
    if not isinstance(model, BPE) or model.dropout or any(_has_space(t.content) for t in added):
        return False
    spelling, steps = list(_steps(tokenizer.normalizer)), list(_steps(tokenizer.pre_tokenizer))
    words = [step for step in steps if step["type"] != "Digits"]  # which looks at each letter alone
    if words and _splits_at_spaces(words[0]):
        return not spelling  # what follows that split sees single words
    is_whole = not model.ignore_merges and not model.end_of_word_suffix
    is_spelled = all(map(_spells_spaces, [*spelling, *steps]))
    return is_whole and is_spelled and not any(map(_goes_on, tokenizer.get_vocab()))


def _steps(part: Normalizer | PreTokenizer | None) -> Iterator[dict[str, Any]]:
    """Yield what a part of a tokenizer does one after another, as tokenizer.json has it."""
    if part is not None:
        yield from _flat(json.loads(part.__getstate__()))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = step.get("normalizers", step.get("pretokenizers"))
    if parts is None:
        yield step
        return
    for part in parts:
        yield from _flat(part)


def _has_space(content: str) -> bool:
    return _SPACE in content or any(map(str.isspace, content))


def _goes_on(token: str) -> bool:
    return bool({_SPACE, " "} & set(token.lstrip(_SPACE)))


def _splits_at_spaces(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    is_split = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    return is_split and step["pattern"] == {"Regex": LLAMA3_SPLIT}


def _spells_spaces(step: dict[str, Any]) -> bool:
    """Say whether a step spells spaces so, or adds something before the text, and no more."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
    return step["type"] == "Prepend" or step.get("replacement") == _SPACE  # of Metaspace
