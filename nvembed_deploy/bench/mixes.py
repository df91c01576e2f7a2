"""This file owns the texts of the benchmark: mixes of lengths, cut from a source by a seed.

The built-in source is the exporter's calibration file (package descriptions, dictionary glosses
and code, own or freely licensed). A user's JSONL is taken as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvembed_deploy.errors import InputError
from nvembed_deploy.export.calibration_texts import BUILT_IN, read_texts

INSTRUCTION = "Given a question, retrieve passages that answer the question"

Lengths = Callable[[list[str]], list[int]]
"""Texts to their numbers of tokens, BOS and EOS included, without an instruction."""


@dataclass(frozen=True)
class Text:
    """A text and its instruction (empty: a passage)."""

    text: str
    instruction: str = ""


@dataclass(frozen=True)
class Shape:
    """A kind of texts: the least and most tokens, the instruction, how few make a round."""

    low: int
    high: int
    instruction: str = ""
    least_texts: int = 32
    most_texts: int = 512


SHAPES = {
    "queries": Shape(8, 40, INSTRUCTION, least_texts=128, most_texts=2048),
    "passages": Shape(80, 300, least_texts=64, most_texts=1024),
    "long": Shape(1000, 4000, least_texts=4, most_texts=128),
}
REAL = "real"
DEFAULT = tuple(SHAPES)
_PIECE = 16


@dataclass(frozen=True)
class Mix:
    """The texts of one table: `texts` in an order that has nothing to do with their lengths."""

    name: str
    texts: tuple[Text, ...]
    least_texts: int = 32

    def groups(self, count: int) -> list[tuple[str, list[str]]]:
        """Return the first `count` texts as (instruction, texts), one call of `encode` each."""
        groups: dict[str, list[str]] = {}
        for text in self.texts[:count]:
            groups.setdefault(text.instruction, []).append(text.text)
        return list(groups.items())


def check_mixes(names: Sequence[str]) -> None:
    """Check the names of mixes, or read their files, before a model is loaded for them.

    Raises:
        InputError: there is no such mix, or two would have one name in tables.
        RecipeError: a file cannot be read.
    """
    called = [mix_name(name) for name in names]
    for name in names:
        check_mix(name)
        if called.count(mix_name(name)) > 1:
            raise InputError(f"two mixes are called {mix_name(name)}", "rename the file of one")


def mix_name(name: str) -> str:
    """Return what tables call a mix: a file goes by its name without the ending."""
    return name if name in SHAPES or name == REAL else Path(name).stem


def check_mix(name: str) -> None:
    """Check a mix's name, or read its file, before a model is loaded for it.

    Raises:
        InputError: there is no such mix.
        RecipeError: the file cannot be read.
    """
    if name in SHAPES or name == REAL:
        return
    if not Path(name).is_file():
        raise InputError(
            f"mix is {name!r}, expected {', '.join(SHAPES)}, {REAL} or a .jsonl file",
            'a file holds lines of {"text": ..., "instruction": ...}',
        )
    for _ in read_texts(Path(name), "mix"):
        pass


def check_fits(name: str, max_tokens: int) -> None:
    """Check that a model takes texts as long as a mix's shortest.

    Raises:
        InputError: it does not.
    """
    if name in SHAPES and max_tokens < SHAPES[name].low + 1:
        raise InputError(
            f"the model takes {max_tokens} tokens, too few for the mix {name}",
            f"leave {name} out of --mix",
        )


def make_mix(name: str, lengths: Lengths, max_tokens: int, seed: int = 0) -> Mix:
    """Return a mix by its name: a key of `SHAPES`, "real", or the path of a JSONL file.

    Args:
        name: which.
        lengths: counts tokens, for the mixes that are cut to length.
        max_tokens: the most that the model takes of one text.
        seed: of the choice of texts.

    Raises:
        InputError: there is no such mix, or the model cannot take texts that long.
        RecipeError: the file cannot be read.
    """
    if name in SHAPES:
        return Mix(name, _cut(name, lengths, max_tokens, seed), SHAPES[name].least_texts)
    check_mix(name)
    path = BUILT_IN if name == REAL else Path(name)
    texts = [Text(t.text, t.instruction) for t in read_texts(path, "mix")]
    random.Random(seed).shuffle(texts)
    return Mix(mix_name(name), tuple(texts))


def _cut(name: str, lengths: Lengths, max_tokens: int, seed: int) -> tuple[Text, ...]:
    shape = SHAPES[name]
    check_fits(name, max_tokens)
    high = min(shape.high, max_tokens)
    texts = cut_texts((shape.low, high), shape.most_texts, lengths, seed)
    return tuple(Text(text, shape.instruction) for text in texts)


def cut_texts(bounds: tuple[int, int], count: int, lengths: Lengths, seed: int = 0) -> list[str]:
    """Return texts of `bounds` tokens (least, most), equally likely, of consecutive words.

    Raises:
        InputError: the tokenizer makes no texts of such lengths.
    """
    words = [word for text in read_texts(BUILT_IN) for word in text.text.split()]
    rng = random.Random(f"{seed} {bounds}")
    # Counted in pieces: of one long text, counts end where the model's longest does.
    pieces = [" ".join(words[i : i + _PIECE]) for i in range(0, len(words), _PIECE)]
    tokens_per_word = sum(lengths(pieces)) / len(words)
    found: list[str] = []
    for _ in range(100):
        drafts = [
            _draft(words, round(rng.uniform(*bounds) / tokens_per_word), rng) for _ in range(count)
        ]
        counted: Sequence[int] = lengths(drafts)
        found += [d for d, n in zip(drafts, counted, strict=True) if bounds[0] <= n <= bounds[1]]
        if len(found) >= count:
            return found[:count]
    raise InputError(
        f"no texts of {bounds[0]} to {bounds[1]} tokens can be cut with this tokenizer",
        "give texts of your own: --mix FILE.jsonl",
    )


def _draft(words: Sequence[str], count: int, rng: random.Random) -> str:
    """Return `count` consecutive words from anywhere; the source begins anew at its end."""
    start = rng.randrange(len(words))
    return " ".join(words[(start + i) % len(words)] for i in range(max(1, count)))
