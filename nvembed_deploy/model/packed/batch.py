"""This file owns a packed batch: texts one after another, and where each begins and ends.

Shapes: T tokens of all texts, R rows that are pooled, B texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from nvembed_deploy.errors import InputError
from nvembed_deploy.spec import Pooling
from nvembed_deploy.text import Batch


@dataclass(frozen=True)
class Segments:
    """Consecutive pieces of a row of tokens: one for each text.

    Attributes:
        lengths: tokens of each piece; on the host, for kernels that take one text at a time.
        cuts: int32 [B + 1], where pieces begin and the last one ends; for kernels that take all.
        longest: no piece is longer.
    """

    lengths: tuple[int, ...]
    cuts: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths_B: NDArray[np.int64]) -> Self:
        """Lay pieces of these lengths one after another."""
        cuts = np.concatenate([[0], lengths_B.cumsum()]).astype(np.int32)
        return cls(tuple(lengths_B.tolist()), torch.from_numpy(cuts), int(lengths_B.max()))

    def to(self, device: torch.device) -> Self:
        """Return it with `cuts` on a device."""
        return replace(self, cuts=self.cuts.to(device, non_blocking=True))


@dataclass(frozen=True)
class PackedBatch:
    """Texts in one row of T tokens.

    Attributes:
        ids_T: int64, token ids.
        position_T: int64, each token's place in its own text.
        texts: where each text is among the T tokens.
        rows_R: int64, the tokens whose last state is needed.
        kept: where each text is among these rows.
        text_R: int64, the text each row is averaged into, -1 for none.
        num_texts: B.
    """

    ids_T: torch.Tensor
    position_T: torch.Tensor
    texts: Segments
    rows_R: torch.Tensor
    kept: Segments
    text_R: torch.Tensor
    num_texts: int

    def to(self, device: torch.device) -> Self:
        """Return it with its tensors on a device."""
        return replace(
            self,
            ids_T=self.ids_T.to(device, non_blocking=True),
            position_T=self.position_T.to(device, non_blocking=True),
            texts=self.texts.to(device),
            rows_R=self.rows_R.to(device, non_blocking=True),
            kept=self.kept.to(device),
            text_R=self.text_R.to(device, non_blocking=True),
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """List what a device computes with, always in the same order."""
        cuts = self.texts.cuts, self.kept.cuts
        return self.ids_T, self.position_T, *cuts, self.rows_R, self.text_R

    def average(self) -> torch.Tensor:
        """Return average_BR, float32: its product with rows is each text's mean (`mean_by`).

        A text with no row gives zeros.
        """
        texts_B1 = torch.arange(self.num_texts, device=self.text_R.device)[:, None]
        member_BR = (self.text_R == texts_B1).float()
        return member_BR / member_BR.sum(1, keepdim=True).clamp(min=1)


def mean_by(average_BR: torch.Tensor, rows_RF: torch.Tensor) -> torch.Tensor:
    """Return mean_BF, float32, of each text's rows; zeros where it has none.

    A row that overflowed, of filling or of another text, is kept out of a text's mean: 0 * inf is
    no number. That of its own text is then no number, all of it.

    Args:
        average_BR: `PackedBatch.average`.
        rows_RF: of any float format.
    """
    is_sound_R1 = rows_RF.sum(-1, keepdim=True, dtype=torch.float32).isfinite()
    mean_BF = average_BR @ torch.where(is_sound_R1, rows_RF, 0.0).float()
    return torch.where(average_BR @ (~is_sound_R1).float() > 0, torch.nan, mean_BF)


def pack(batch: Batch, pooling: Pooling) -> PackedBatch:
    """Lay the texts of a padded batch one after another.

    Args:
        batch: right-padded.
        pooling: what is done with the kept tokens: the rows of `Pooling.EOS` are the last ones.

    Raises:
        InputError: a text is not at the left of its row.
    """
    attended_BS, pooled_BS = batch.attention_mask_BS != 0, batch.pool_mask_BS != 0
    lengths_B = attended_BS.sum(1)
    if not (attended_BS == (np.arange(attended_BS.shape[1]) < lengths_B[:, None])).all():
        raise InputError("a text of the batch is not at the left of its row", "pad on the right")
    pooled_BS = _last(pooled_BS) if pooling is Pooling.EOS else pooled_BS & attended_BS
    position_BS = np.broadcast_to(np.arange(attended_BS.shape[1]), attended_BS.shape)
    return PackedBatch(
        ids_T=torch.from_numpy(batch.input_ids_BS[attended_BS]),
        position_T=torch.from_numpy(position_BS[attended_BS]),
        texts=Segments.of(lengths_B),
        rows_R=torch.from_numpy(np.flatnonzero(pooled_BS[attended_BS])),
        kept=Segments.of(pooled_BS.sum(1)),
        text_R=torch.from_numpy(np.nonzero(pooled_BS)[0]),
        num_texts=batch.num_texts,
    )


def _last(mask_BS: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the last true value of each row."""
    last: NDArray[np.bool_] = mask_BS & (mask_BS.cumsum(1) == mask_BS.sum(1, keepdims=True))
    return last


def widen(batch: PackedBatch, num_tokens: int, num_texts: int) -> PackedBatch:
    """Fill a batch up to fixed sizes, so that few shapes serve all batches.

    All tokens become rows; the filling is a text of its own, which is averaged into nothing, and
    texts that are missing are empty: their embeddings are zeros. Not for poolers whose rows see
    each other.
    """
    size = len(batch.ids_T)
    filling = num_tokens - size
    lengths = [*batch.texts.lengths, *[0] * (num_texts - batch.num_texts), filling]
    texts = replace(Segments.of(np.array(lengths)), longest=num_tokens)
    text_T = torch.full((num_tokens,), -1)
    text_T[batch.rows_R] = batch.text_R
    return PackedBatch(
        ids_T=functional.pad(batch.ids_T, (0, filling)),
        position_T=torch.cat([batch.position_T, torch.arange(filling)]),
        texts=texts,
        rows_R=torch.arange(num_tokens),
        kept=texts,
        text_R=text_T,
        num_texts=num_texts,
    )


@dataclass(frozen=True)
class Run:
    """Neighbours of one shape, which a dense kernel takes together."""

    num_texts: int
    num_queries: int
    num_keys: int


def runs(queries: Segments, keys: Segments) -> list[Run]:
    """Group neighbouring texts with as many queries and as many keys."""
    shapes = zip(queries.lengths, keys.lengths, strict=True)
    return [Run(len(list(group)), *shape) for shape, group in groupby(shapes)]
