"""This file owns how long training texts are: percentiles of words and tokens for each source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.rows import Row

_PERCENTILES = (50, 90, 99, 100)
_HEADER = ("source", "part", "texts", "unit", "p50", "p90", "p99", "max")
_TEXT_COLUMNS = 2
_BATCH = 1024


def load_tokenizer(path: Path) -> Tokenizer:
    """Open the tokenizer.json of a model.

    Raises:
        InputError: there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises no kind of its own
        raise InputError(
            f"tokenizer {file} cannot be read: {error}", "give a tokenizer.json or its folder"
        ) from error
    tokenizer.no_truncation()
    return tokenizer


class Lengths:
    """Collects lengths while rows pass by."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        """Count words; tokens too, special ones included, if there is a tokenizer."""
        self._tokenizer = tokenizer
        self._words: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._tokens: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._waiting: list[tuple[tuple[str, str], str]] = []

    def add(self, row: Row) -> None:
        """Count an example's texts."""
        source = str(row.get("source") or "?")
        self._count((source, "query"), row["query"])
        self._count((source, "positive"), row["positive"])
        for text in row.get("negatives") or ():
            self._count((source, "negative"), text)

    def table(self) -> str:
        """Return a line for each source and part of the examples, aligned."""
        self._tokenize()
        lines: list[Sequence[str]] = [_HEADER]
        for key, words in self._words.items():
            lines.append((*key, f"{len(words):,}", "words", *_percentiles(words)))
            if self._tokenizer is not None:
                lines.append(("", "", "", "tokens", *_percentiles(self._tokens[key])))
        return aligned(lines)

    def _count(self, key: tuple[str, str], text: str) -> None:
        self._words[key].append(len(text.split()))
        if self._tokenizer is not None:
            self._waiting.append((key, text))
            if len(self._waiting) >= _BATCH:
                self._tokenize()

    def _tokenize(self) -> None:
        if self._tokenizer is None or not self._waiting:
            return
        encoded = self._tokenizer.encode_batch([text for _, text in self._waiting])
        for (key, _), tokens in zip(self._waiting, encoded, strict=True):
            self._tokens[key].append(len(tokens.ids))
        self._waiting.clear()


def _percentiles(lengths: list[int]) -> list[str]:
    """Return lengths that occur: that share of the texts is not longer."""
    values = np.percentile(lengths, _PERCENTILES, method="inverted_cdf")
    return [f"{int(value):,}" for value in values]


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """Return a table as text: names to the left, numbers to the right."""
    table = [list(line) for line in lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < _TEXT_COLUMNS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )
