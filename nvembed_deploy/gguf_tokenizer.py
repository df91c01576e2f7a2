"""This file owns tokenizers rebuilt from GGUF metadata, as the model's own tokenizer.json has them.

No BOS or EOS is added: `text.py` does that, by id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.gguf_header import GGUFHeader, read_header
from nvembed_deploy.text_head import LLAMA3_SPLIT

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Token types of llama.cpp."""

_SPACE = "\u2581"
_GPT2 = "gpt-2"
_LLAMA3 = "llama-bpe"
_SMOLLM = "smollm"


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens by id, and their types."""

    tokens: list[str]
    types: list[int]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def of_type(self, *types: int) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        CheckpointError: the file is damaged, or its tokenizer of a kind that is not known here.
        MissingPackageError: the gguf package is not installed.
    """
    header = read_header(path)
    vocabulary = _vocabulary(header)
    kind = header.get("tokenizer.ggml.model", str)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise _refuse(header, f"tokenizer.ggml.model is {kind!r}, expected {sorted(builders)}")
    tokenizer = builders[kind](header, vocabulary)
    for types, special in (((_UNKNOWN, _CONTROL), True), ((_USER_DEFINED,), False)):
        tokens = vocabulary.of_type(*types)
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in tokens])
    return tokenizer


def _refuse(header: GGUFHeader, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{header.path}: {problem}", "put the model's own tokenizer.json beside the file"
    )


def _vocabulary(header: GGUFHeader) -> _Vocabulary:
    tokens = header.get_all("tokenizer.ggml.tokens", str)
    types = header.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise _refuse(
            header,
            f"got {len(tokens)} tokens, {len(set(tokens))} of them different, and {len(types)} "
            "types, expected as many of each",
        )
    return _Vocabulary(tokens, types)


def _bpe(
    header: GGUFHeader,
    vocabulary: _Vocabulary,
    merges: list[tuple[str, str]],
    options: Mapping[str, Any],
) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocabulary.ids, merges, **options))
    except Exception as error:  # tokenizers raises nothing narrower
        raise _refuse(header, f"its merges do not fit its tokens: {error}") from error


def _byte_level(header: GGUFHeader, vocabulary: _Vocabulary) -> Tokenizer:
    """Build a GPT-2 style tokenizer: split, spell bytes as letters, merge.

    "default" names no split: converters write it for any tokenizer, and what llama.cpp then does
    is no model's own (punctuation apart from its space, numbers by threes).
    """
    pre = header.metadata.get("tokenizer.ggml.pre")
    splits: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
        _GPT2: _gpt2_split,
        _SMOLLM: _smollm_split,
        _LLAMA3: _llama3_split,
    }
    if pre not in list(splits):  # it may be of any kind
        raise _refuse(header, f"tokenizer.ggml.pre is {pre!r}, expected {sorted(splits)}")
    spelled = [m.partition(" ") for m in header.get_all("tokenizer.ggml.merges", str)]
    merges = [(left, right) for left, _, right in spelled]
    # Llama 3 takes a word that is a token whole, whatever its merges say.
    tokenizer = _bpe(header, vocabulary, merges, {"ignore_merges": pre == _LLAMA3})
    tokenizer.pre_tokenizer = splits[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm_split() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2_split()])


def _llama3_split() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, spell])


def _sentencepiece(header: GGUFHeader, vocabulary: _Vocabulary) -> Tokenizer:
    """Build a sentencepiece BPE tokenizer: spaces become a letter, unknown letters bytes."""
    unknown = vocabulary.of_type(_UNKNOWN)
    options = {
        "unk_token": unknown[0] if unknown else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    tokenizer = _bpe(header, vocabulary, _merges(header, vocabulary), options)
    spell: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    unspell: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if header.get("tokenizer.ggml.add_space_prefix", bool, True):
        spell.insert(0, normalizers.Prepend(_SPACE))
        unspell.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spell)
    tokenizer.decoder = decoders.Sequence(unspell)
    return tokenizer


def _merges(header: GGUFHeader, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Rebuild the merges: each way to cut a token into two tokens, best score first.

    Source: generate_merges in transformers' tokenization_utils_base.py.
    """
    scores = header.get_all("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise _refuse(
            header, f"got {len(scores)} scores, expected {len(vocabulary.tokens)}, one a token"
        )
    score = dict(zip(vocabulary.tokens, scores, strict=True))
    normal = dict.fromkeys(vocabulary.of_type(_NORMAL))
    cuts = ((token[:i], token[i:]) for token in normal for i in range(1, len(token)))
    merges = [(a, b) for a, b in cuts if a in normal and b in normal]
    return sorted(merges, key=lambda m: (score[m[0] + m[1]], len(m[0]), len(m[1])), reverse=True)
