"""Tests of text_head.py: the ids of a beginning are those that the whole text begins with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from nvembed_deploy import text
from nvembed_deploy.spec import TextSpec, Truncation
from nvembed_deploy.text_head import LLAMA3_SPLIT, Heads, has_heads

CORPUS = ["the cat sat on the mat, and the dog's 12 fleas  sat on it.\n\n  It isn't so: 3.14!"] * 9
WORDS = [
    "the",
    " cat",
    "\u00e9",
    "12",
    " ",
    "  ",
    "\n",
    "\n  ",
    "'s",
    ".",
    "\u2581",
    "</s>",
    "\u6f22",
]


def trained(
    pre: pre_tokenizers.PreTokenizer | None,
    spelling: normalizers.Normalizer | None = None,
    **options: Any,
) -> Tokenizer:
    """Return a BPE tokenizer with some merges; "</s>" is a token of its own."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre
    if spelling is not None:
        tokenizer.normalizer = spelling
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def one_word(step: object, **options: Any) -> Tokenizer:
    """Return one that was trained on words and then takes a text as one, as sentencepiece does."""
    words = pre_tokenizers.Metaspace(split=True)
    tokenizer = trained(words, unk_token="</s>", fuse_unk=True, **options)
    is_spelling = isinstance(step, normalizers.Normalizer)
    tokenizer.pre_tokenizer = None if is_spelling else step
    if is_spelling:
        tokenizer.normalizer = step
    return tokenizer


def spelled() -> normalizers.Normalizer:
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    return normalizers.Sequence(steps)


def byte_level(*steps: pre_tokenizers.PreTokenizer, use_regex: bool = True, **options: Any) -> Any:
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return trained(pre_tokenizers.Sequence([*steps, spell]), **options)


def llama3_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")


KNOWN: dict[str, Callable[[], Tokenizer]] = {
    "mistral": lambda: one_word(spelled()),
    "metaspace": lambda: one_word(pre_tokenizers.Metaspace(split=False, prepend_scheme="first")),
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-3": lambda: byte_level(llama3_split(), use_regex=False, ignore_merges=True),
}


def with_space() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("cat sat", normalized=False)])
    return tokenizer


def with_word_ends() -> Tokenizer:
    tokenizer = one_word(spelled())
    tokenizer.model.end_of_word_suffix = "."  # training takes the trainer's
    return tokenizer


UNKNOWN: dict[str, Callable[[], Tokenizer]] = {
    "a token over a space": lambda: trained(None, spelled()),
    "a split after the spelling": lambda: byte_level(
        pre_tokenizers.ByteLevel(use_regex=False), llama3_split(), use_regex=False
    ),
    "another split": lambda: byte_level(
        pre_tokenizers.Split(Regex(r"\w+ ?"), behavior="isolated"), use_regex=False
    ),
    "a split that drops": lambda: byte_level(
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="removed"), use_regex=False
    ),
    "an added token with a space": with_space,
    "another normaliser": lambda: one_word(normalizers.NFKC()),
    "a normaliser before a split": lambda: trained(
        pre_tokenizers.ByteLevel(), normalizers.Replace("e c", "")
    ),
    "dropout": lambda: byte_level(dropout=0.1),
    "a whole word first": lambda: one_word(spelled(), ignore_merges=True),
    "an end of words": with_word_ends,
    "no BPE": lambda: Tokenizer(models.WordLevel({"a": 0})),
}


def ids(tokenizer: Tokenizer, whole: str) -> list[int]:
    return tokenizer.encode(whole, add_special_tokens=False).ids


MADE: dict[str, Tokenizer] = {}


def made(kind: str) -> Tokenizer:
    if kind not in MADE:
        MADE[kind] = KNOWN[kind]()
    return MADE[kind]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    letters = [chr(rng.randrange(32, 0x3000)) for _ in range(9)]
    return ["".join(rng.choices([*WORDS, *letters], k=rng.randrange(150))) for _ in range(count)]


@pytest.mark.parametrize("kind", list(KNOWN))
def test_the_ids_of_a_head_are_those_the_text_begins_with(kind: str) -> None:
    tokenizer, num_heads = made(kind), 0
    heads = Heads(tokenizer)
    for whole in random_texts(300):
        head = heads.of(whole, 3)
        num_heads += head is not whole
        part = ids(tokenizer, head)
        assert part == ids(tokenizer, whole)[: len(part)]
    assert num_heads > 100


@pytest.mark.parametrize("kind", list(KNOWN))
def test_a_long_text_has_a_head(kind: str) -> None:
    assert has_heads(made(kind))
    assert Heads(made(kind)).of("the cat sat " * 9, 4) == "the cat sat the cat sat the cat sat"


@pytest.mark.parametrize("kind", list(UNKNOWN))
def test_of_other_tokenizers_texts_are_whole(kind: str) -> None:
    whole = "the cat sat " * 9
    assert Heads(UNKNOWN[kind]()).of(whole, 3) is whole


@pytest.mark.parametrize("whole", ["the cat", "\u6f22" * 99, "a cat " * 9 + "\ud83d", None, 3])
def test_what_is_short_or_has_no_space_or_is_no_text_is_whole(whole: Any) -> None:
    assert Heads(made("gpt-2")).of(whole, 3) is whole


class Recorder:
    """A tokenizer that notes how much it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.sizes = tokenizer, []

    def __getattr__(self, name: str) -> Any:
        """Take all else from the tokenizer."""
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        self.sizes += map(len, texts)
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("truncation", list(Truncation))
@pytest.mark.parametrize("kind", list(KNOWN))
def test_texts_are_cut_as_if_they_were_tokenised_whole(
    kind: str, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.text_head._CHARACTERS_A_TOKEN", 1)  # often too few
    texts, tokenizer = (
        random_texts(100),
        text.Tokenizer(made(kind), TextSpec(truncation=truncation)),
    )
    for limit in (8, 40):
        for whole, got in zip(texts, tokenizer.tokenize(texts, max_tokens=limit), strict=True):
            expected = [1, *ids(made(kind), whole), 2]
            is_cut = len(expected) > limit
            if is_cut:
                ends = truncation is Truncation.KEEP_EOS
                expected = [*expected[: limit - 1], 2] if ends else expected[:limit]
            assert (got.ids.tolist(), got.is_cut) == (expected, is_cut)


def test_no_more_than_the_head_is_tokenised() -> None:
    recorder = Recorder(made("mistral"))
    tokenizer = text.Tokenizer(recorder, TextSpec())  # type: ignore[arg-type]
    tokenizer.tokenize(["the cat sat " * 99_999, "short"], max_tokens=8)
    assert recorder.sizes == [67, 5]
