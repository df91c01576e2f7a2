"""Tests of laying texts one after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvembed_deploy.errors import InputError
from nvembed_deploy.model.packed.batch import Run, pack, runs, widen
from nvembed_deploy.spec import Pooling
from nvembed_deploy.text import Batch, Tokens, collate

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6).map(
    lambda pairs: [(size, min(masked, size - 1)) for size, masked in pairs]
)


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    tokens = [Tokens(np.arange(size) + 10 * row, k) for row, (size, k) in enumerate(lengths)]
    return collate(tokens, pad_id=99)


@given(LENGTHS)
def test_every_token_is_there_once_and_no_padding(lengths):
    packed = pack(batch_of(lengths), Pooling.LATENT)
    expected = [10 * row + i for row, (size, _) in enumerate(lengths) for i in range(size)]
    assert packed.ids_T.tolist() == expected
    assert packed.position_T.tolist() == [i for size, _ in lengths for i in range(size)]
    assert packed.texts.lengths == tuple(size for size, _ in lengths)
    assert packed.texts.cuts.tolist() == [0, *np.cumsum([size for size, _ in lengths])]


@given(LENGTHS)
def test_rows_are_the_pooled_tokens(lengths):
    packed = pack(batch_of(lengths), Pooling.LATENT)
    assert packed.kept.lengths == tuple(size - k for size, k in lengths)
    assert packed.position_T[packed.rows_R].tolist() == [
        i for size, k in lengths for i in range(k, size)
    ]
    assert packed.text_R.tolist() == [
        row for row, (s, k) in enumerate(lengths) for _ in range(s - k)
    ]


@given(LENGTHS)
def test_eos_needs_one_row_a_text(lengths):
    packed = pack(batch_of(lengths), Pooling.EOS)
    assert packed.position_T[packed.rows_R].tolist() == [size - 1 for size, _ in lengths]


@given(LENGTHS)
def test_the_average_of_ones_is_one(lengths):
    packed = pack(batch_of(lengths), Pooling.MEAN)
    ones_R1 = torch.ones(len(packed.rows_R), 1)
    torch.testing.assert_close(packed.average() @ ones_R1, torch.ones(len(lengths), 1))


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3))
def test_filling_belongs_to_no_text(lengths, more_tokens, more_texts):
    packed = pack(batch_of(lengths), Pooling.LATENT)
    num_tokens, num_texts = len(packed.ids_T) + more_tokens, len(lengths) + more_texts
    wide = widen(packed, num_tokens, num_texts)
    assert len(wide.ids_T) == len(wide.position_T) == len(wide.text_R) == num_tokens
    assert wide.texts.lengths[: len(lengths)] == packed.texts.lengths
    assert (len(wide.texts.lengths), wide.texts.lengths[-1]) == (num_texts + 1, more_tokens)
    assert sorted(wide.text_R[wide.text_R >= 0].tolist()) == packed.text_R.tolist()
    assert (wide.text_R[len(packed.ids_T) :] == -1).all()


def test_a_text_padded_on_the_left_is_refused():
    batch = batch_of([(3, 0), (2, 0)])
    batch.attention_mask_BS[1] = [0, 1, 1]
    with pytest.raises(InputError, match="not at the left"):
        pack(batch, Pooling.LATENT)


def test_neighbours_of_one_shape_run_together():
    packed = pack(batch_of([(5, 1), (5, 1), (5, 2), (3, 0)]), Pooling.LATENT)
    assert runs(packed.kept, packed.texts) == [Run(2, 4, 5), Run(1, 3, 5), Run(1, 3, 3)]
