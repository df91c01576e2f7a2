"""This file owns whether an instruction leaves room for the text after it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import lru_cache

from nvembed_deploy.spec import Truncation
from nvembed_deploy.text import Tokenizer

_REMEMBERED = 1 << 16
"""Instructions whose answer is kept: a set has few, or as many as lines."""


class Room:
    """The tokens that one text may have, its instruction included."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, digest: str) -> None:
        """Take a tokenizer, `text.max_tokens`, and a hash of the tokenizer's file."""
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self.fault_of = lru_cache(_REMEMBERED)(self._fault_of)
        self.key = json.dumps([digest, asdict(tokenizer.spec), max_tokens])
        """What the answers depend on, as a text."""

    def _fault_of(self, instruction: str) -> str | None:
        """Say why not every text has room for a token of its own; None where each has."""
        (row,) = self._tokenizer.tokenize([""], instruction, max_tokens=sys.maxsize)
        keeps_eos = self._tokenizer.spec.truncation is Truncation.KEEP_EOS
        if row.num_masked < self._max_tokens - 1 - keeps_eos:  # 1 is BOS
            return None
        return (
            f"the instruction's {row.num_masked} tokens leave no room for a text in "
            f"text.max_tokens {self._max_tokens}"
        )
