"""This file owns the text contract: how a text becomes token ids, masks and a batch.

It needs numpy and `tokenizers` only, and reads tokenizer.json raw: transformers 5 rebuilds that
file and gives other ids for texts that begin with a space or stand beside a special token.

One text becomes BOS, instruction, text, EOS; a batch is padded on the right. What may be attended
(`attention_mask`) and what is averaged (`pool_mask`) are two masks: the instruction is in the
first and not in the second. Legend: B batch, S sequence. Masks: 1 = keep.

Source: arXiv 2405.17428 section 4.1 and the behaviour of NV-Embed's own `encode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from numpy.typing import NDArray

from nvembed_deploy.errors import ArtifactError, InputError, TextError
from nvembed_deploy.spec import MIN_TOKENS, TextSpec, Truncation
from nvembed_deploy.text_head import Heads

_CLEAN = "pass valid Unicode: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
_PIECE_CHARACTERS = 4 << 20
"""Tokenised together: some million tokens, enough for all threads of a large machine."""


@dataclass(frozen=True)
class Tokens:
    """One text: `ids` int64 [S] with BOS and EOS; the first `num_masked` are not pooled.

    `is_cut` says whether it lost its end.
    """

    ids: NDArray[np.int64]
    num_masked: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class Batch:
    """What a graph takes: three int64 [B, S] arrays.

    `attention_mask_BS` says what may be attended, `pool_mask_BS` what is averaged.
    """

    input_ids_BS: NDArray[np.int64]
    attention_mask_BS: NDArray[np.int64]
    pool_mask_BS: NDArray[np.int64]

    @property
    def num_texts(self) -> int:
        """B."""
        return int(self.input_ids_BS.shape[0])

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.attention_mask_BS.sum())


def collate(tokens: Sequence[Tokens], pad_id: int) -> Batch:
    """Pad texts on the right to the longest of them.

    Raises:
        InputError: there is no text, or one has nothing to pool.
    """
    if not tokens:
        raise InputError("got no text, expected at least one", "skip empty batches")
    lengths_B = np.array([len(t.ids) for t in tokens])
    masked_B = np.array([t.num_masked for t in tokens])
    _check_rows(lengths_B, masked_B)
    position_S = np.arange(lengths_B.max())
    attended_BS = position_S < lengths_B[:, None]
    input_ids_BS = np.full(attended_BS.shape, pad_id, np.int64)
    input_ids_BS[attended_BS] = np.concatenate([t.ids for t in tokens])
    pooled_BS = attended_BS & (position_S >= masked_B[:, None])
    return Batch(input_ids_BS, attended_BS.astype(np.int64), pooled_BS.astype(np.int64))


def _check_rows(lengths_B: NDArray[np.int64], masked_B: NDArray[np.int64]) -> None:
    for row, (size, masked) in enumerate(zip(lengths_B, masked_B, strict=True)):
        if masked >= size:
            raise InputError(
                f"text {row} has {size} tokens and {masked} of them are instruction: the mean "
                "over no token is not defined",
                "allow more tokens, or shorten the instruction",
            )


class Tokenizer:
    """Texts in, `Tokens` out, by the rules of one model (`spec`)."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, spec: TextSpec) -> None:
        """Take a raw tokenizer; its own padding, truncation and special-token rules are unused."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.spec = spec
        self._tokenizer, self._heads = tokenizer, Heads(tokenizer)

    @classmethod
    def load(cls, path: Path, spec: TextSpec, vocab_size: int | None = None) -> Self:
        """Read a tokenizer.json.

        Args:
            path: the file.
            spec: the model's text rules.
            vocab_size: rows of the model's embedding table; None does not compare.

        Raises:
            ArtifactError: the file is missing or damaged, lacks BOS, EOS or the padding token, or
                has ids beyond the embedding table; or its path is not UTF-8.
        """
        if fault_of(str(path)):
            raise ArtifactError(
                f"{str(path)!a} is no UTF-8 path, which no tokenizer and no graph is read from",
                "rename the folder, or copy it to another",
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ArtifactError(
                f"{path}: cannot be read as a tokenizer.json: {error}",
                "copy the model's own tokenizer.json there, or export again",
            ) from error
        for name in ("bos_id", "eos_id", "pad_id"):
            token_id = getattr(spec, name)
            if tokenizer.id_to_token(token_id) is None:
                raise ArtifactError(
                    f"{path}: {name} is {token_id}, which this tokenizer of "
                    f"{tokenizer.get_vocab_size()} tokens does not have",
                    "use the tokenizer.json of this very model",
                )
        greatest = max(tokenizer.get_vocab().values())
        if vocab_size is not None and greatest >= vocab_size:
            raise ArtifactError(
                f"{path}: its greatest id is {greatest} ({tokenizer.id_to_token(greatest)!r}), "
                f"the model's embedding table ends at {vocab_size - 1}",
                "use the tokenizer.json of this very model",
            )
        return cls(tokenizer, spec)

    def tokenize(
        self,
        texts: Sequence[str],
        instruction: str = "",
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
    ) -> list[Tokens]:
        """Tokenise texts that share one prefix.

        A text too long loses its last words and keeps EOS; under `Truncation.REFERENCE` it is cut
        with its EOS, as NV-Embed's own code does. "</s>" written in a text is the token, as there.

        Args:
            texts: any strings, empty ones too.
            instruction: put into the model's template; empty is no prefix (a passage).
            prompt: a literal prefix instead of the template, which is not pooled either.
            max_tokens: most tokens of one text, BOS, prefix and EOS included.

        Raises:
            TextError: a text is no string or holds half of a surrogate pair, or the prefix
                leaves no room for any of it.
            InputError: the prefix itself or `max_tokens` cannot be used.
        """
        _check_string("instruction", instruction)
        _check_string("prompt", "" if prompt is None else prompt)
        limit = self._limit(max_tokens)
        prefix = prompt if prompt is not None else self._prefix(instruction)
        own, tokens = self._prefix_ids(prefix), []
        for index, ids in enumerate(self._each(prefix, texts, limit)):
            whole = [self.spec.bos_id, *ids, self.spec.eos_id]
            kept = self._truncate(whole, limit)
            is_cut = len(kept) < len(whole)
            if is_cut:
                self._check_room(kept, own, index)
            tokens.append(Tokens(np.array(kept, np.int64), len(own), is_cut))
        return tokens

    def _prefix(self, instruction: str) -> str:
        template = self.spec.instruction_template
        return template.format(instruction=instruction) if instruction else ""

    def _limit(self, max_tokens: int | None) -> int:
        limit = self.spec.max_tokens if max_tokens is None else max_tokens
        if limit < MIN_TOKENS:
            raise InputError(
                f"max_tokens is {limit}, expected at least {MIN_TOKENS}: BOS, one token and EOS",
                "allow more tokens",
            )
        return limit

    def _prefix_ids(self, prefix: str) -> list[int]:
        """Return the prefix's own k tokens, without BOS; k leading ones are not pooled.

        The template ends in a space, which joins the text's first word: k tokens from BOS on are
        the instruction, exactly.
        """
        return self._encode(prefix, [""])[0] if prefix else []

    def _each(self, prefix: str, texts: Sequence[str], limit: int) -> Iterator[list[int]]:
        """Yield the ids of one text after another, or so many of the first that it is cut.

        Few texts are held at once: what the tokenizer says of a token takes 100 bytes.
        """
        for start, stop in _pieces(texts):
            piece = texts[start:stop]
            heads = [self._heads.of(text, limit) for text in piece]
            try:
                found = self._encode(prefix, heads)
            except TextError as error:
                raise error.at(start + error.index) from None
            for text, part, ids in zip(piece, heads, found, strict=True):
                is_enough = part is text or len(ids) + 2 > limit  # BOS and EOS
                yield ids if is_enough else self._encode(prefix, [text])[0]

    def _encode(self, prefix: str, texts: Sequence[str]) -> list[list[int]]:
        try:
            joined = [prefix + text for text in texts]
            encodings = self._tokenizer.encode_batch_fast(joined, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            _find_fault(prefix, texts)
            raise
        return [encoding.ids for encoding in encodings]

    def _truncate(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        if self.spec.truncation is Truncation.REFERENCE:
            return ids[:limit]
        return [*ids[: limit - 1], self.spec.eos_id]

    def _check_room(self, kept: list[int], own: list[int], index: int) -> None:
        """Refuse a cut text of which no token is left.

        The prefix's last token may have become one with the text's first, and be of the text.
        """
        keeps_eos = self.spec.truncation is Truncation.KEEP_EOS
        left = kept[1 : len(kept) - keeps_eos]
        if len(left) < len(own) or left == own:
            raise TextError(
                index,
                f"cannot be embedded: {len(kept)} tokens are allowed and the prefix has "
                f"{len(own)}, so that nothing of the text is left",
                "raise max_length, or shorten the instruction or prompt",
            )


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where each piece of the texts begins and ends, of so many characters, or of one."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text) if isinstance(text, str) else 0
        if size >= _PIECE_CHARACTERS:
            yield start, index + 1
            start, size = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _check_string(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(
            f"{name} is a {type(value).__name__}, expected one string for all texts",
            f"encode texts of each {name} in a call of their own",
        )


def _find_fault(prefix: str, texts: Sequence[str]) -> None:
    """Say which string cannot be encoded as UTF-8, and why.

    Raises:
        InputError: the prefix is at fault.
        TextError: a text is.
    """
    problem = fault_of(prefix)
    if problem:
        raise InputError(f"the instruction or prompt {problem}", _CLEAN)
    for index, text in enumerate(texts):
        problem = fault_of(text)
        if problem:
            raise TextError(index, problem, _CLEAN)


def fault_of(text: object) -> str | None:
    """Say why a text cannot be tokenised, after its name in a sentence; None where it can."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, expected a string"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        return f"has half of a surrogate pair, {half!a}, at character {error.start}"
    return None
