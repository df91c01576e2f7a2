"""Tests of the packed model against the padded one, which is the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.model.names import expected_shapes
from nvembed_deploy.model.nvembed import load_model
from nvembed_deploy.model.packed import attention, layer
from nvembed_deploy.model.packed.batch import Segments, widen
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.model import PackedModel
from nvembed_deploy.model.packed.reader import checkpoint_reader
from nvembed_deploy.model.weights import Weights, open_weights
from nvembed_deploy.spec import ModelSpec, PoolerForm, Pooling
from nvembed_deploy.text import Batch, Tokens, collate
from tests.factories import TINY, values, write_released

LENGTHS = ((17, 5), (3, 0), (40, 39), (3, 0), (3, 2), (1, 0), (25, 0), (8, 7))
"""Tokens, and how many of them are instruction."""
TOLERANCE = 2e-6
"""Measured 3e-7."""


class _InMemory:
    """A tensor in memory, as a checkpoint's is read."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.path, self.shape, self._array = name, array.shape, array

    def read(self, rows: slice | None = None) -> np.ndarray:
        return self._array if rows is None else self._array[rows]


def weights_of(spec: ModelSpec) -> Weights:
    tensors = {n: _InMemory(n, values(n, shape)) for n, shape in expected_shapes(spec).items()}
    return Weights(spec, tensors)


def with_pooling(pooling: Pooling, *, causal: bool = False) -> ModelSpec:
    return replace(
        TINY,
        pooler=replace(TINY.pooler, pooling=pooling),
        backbone=replace(TINY.backbone, causal=causal),
    )


def texts(lengths=LENGTHS) -> Batch:
    rng = np.random.default_rng(0)
    tokens = [Tokens(rng.integers(3, 300, size), masked) for size, masked in lengths]
    return collate(tokens, TINY.text.pad_id)


def packed_model(weights: Weights, **options) -> PackedModel:
    dtype = options.pop("dtype", torch.float32)
    loader = Loader(checkpoint_reader(weights), dtype, torch.device("cpu"), Kernels(), **options)
    return PackedModel.load(weights.spec, loader)


def embed(model: PackedModel, batch: Batch) -> np.ndarray:
    return model(model.pack(batch)).numpy()


def reference(weights: Weights, batch: Batch) -> np.ndarray:
    model = load_model(weights, PoolerForm.FAITHFUL)
    arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
    with torch.inference_mode():
        return model(*(torch.from_numpy(array) for array in arrays)).numpy()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_it_is_the_padded_model(pooling, causal):
    weights = weights_of(with_pooling(pooling, causal=causal))
    np.testing.assert_allclose(
        embed(packed_model(weights), texts()), reference(weights, texts()), atol=TOLERANCE
    )


@pytest.mark.parametrize("empty", [slice(1, 2), slice(2)], ids=["one", "all"])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_text_without_a_pooled_token_gives_zeros(pooling, empty):
    weights, batch = weights_of(with_pooling(pooling)), texts(((5, 0), (6, 0)))
    batch.pool_mask_BS[empty] = 0
    rows_BD = embed(packed_model(weights), batch)
    assert not rows_BD[empty].any()
    np.testing.assert_allclose(rows_BD, reference(weights, batch), atol=TOLERANCE)


def test_a_text_does_not_depend_on_its_neighbours():
    weights = weights_of(TINY)
    model = packed_model(weights)
    together_BD = embed(model, texts())
    for row, (size, _) in enumerate(LENGTHS):
        whole = texts()
        parts = (whole.input_ids_BS, whole.attention_mask_BS, whole.pool_mask_BS)
        alone = Batch(*(array[row : row + 1, :size] for array in parts))
        np.testing.assert_allclose(embed(model, alone)[0], together_BD[row], atol=TOLERANCE)


def test_only_distances_inside_a_text_count():
    model = packed_model(weights_of(TINY))
    batch = model.pack(texts())
    running_on = replace(batch, position_T=torch.arange(len(batch.ids_T)))
    reverse = replace(batch, position_T=batch.position_T.flip(0))
    right_BD = model(batch)
    assert (model(running_on) - right_BD).abs().max() < TOLERANCE
    assert (model(reverse) - right_BD).abs().max() > 1000 * TOLERANCE


def test_attention_across_texts_is_noticed(monkeypatch):
    model = packed_model(weights_of(TINY))
    right_BD = embed(model, texts())

    def across(query, key, value, **segments):
        for side in ("queries", "keys"):
            segments[side] = Segments.of(np.array([sum(segments[side].lengths)]))
        return attention.attend(query, key, value, **segments)

    monkeypatch.setattr(layer, "attend", across)
    assert np.abs(embed(model, texts()) - right_BD).max() > 1000 * TOLERANCE


@pytest.mark.parametrize("pooling", [Pooling.LATENT, Pooling.MEAN, Pooling.EOS])
@pytest.mark.parametrize(("num_tokens", "num_texts"), [(100, 8), (128, 16)])
def test_filling_a_batch_up_changes_nothing(pooling, num_tokens, num_texts):
    model = packed_model(weights_of(with_pooling(pooling)))
    batch = model.pack(texts())
    wide_BD = model(widen(batch, num_tokens, num_texts))
    assert wide_BD.shape[0] == num_texts
    np.testing.assert_allclose(wide_BD[: batch.num_texts], model(batch), atol=TOLERANCE)
    assert not wide_BD[batch.num_texts :].any()


@pytest.mark.parametrize("pooling", [Pooling.LATENT, Pooling.MEAN])
def test_filling_that_overflows_is_in_no_mean(pooling):
    model = packed_model(weights_of(with_pooling(pooling)))
    model.embedding_VD[0] = torch.inf  # what batches are filled up with
    wide_BD = model(widen(model.pack(texts()), 128, 8))
    assert wide_BD.isfinite().all()


@pytest.mark.parametrize(
    ("pooling", "is_wide"),
    [
        *((pooling, False) for pooling in Pooling),
        *((pooling, True) for pooling in Pooling if pooling is not Pooling.SELF_ATTENTION),
    ],
)
def test_a_text_that_overflows_spoils_no_other(pooling, is_wide):
    """Self-attention's rows see each other: it is never filled up."""
    model = packed_model(weights_of(with_pooling(pooling)))
    well = [Tokens(np.arange(3, 9)), Tokens(np.arange(50, 60), 3)]
    sick = Tokens(np.array([1, 5, 319, 7, 2]))
    right_BD = embed(model, collate(well, 2))
    model.embedding_VD[319] = torch.inf
    batch = model.pack(collate([well[0], sick, well[1]], 2))
    got_BD = model(widen(batch, 32, 4) if is_wide else batch)[:3].numpy()
    np.testing.assert_allclose(got_BD[[0, 2]], right_BD, atol=TOLERANCE)
    assert np.isnan(got_BD[1]).all()


@pytest.mark.parametrize(
    ("options", "loss"),
    [({"dtype": torch.float16}, 1e-5), ({"dtype": torch.bfloat16}, 3e-4), ({"is_fp8": True}, 2e-2)],
)
def test_coarser_formats_stay_near(options, loss):
    """Measured 9e-7, 7e-5 and 9e-3; a row has 64 values here, 4096 in NV-Embed."""
    weights = weights_of(TINY)
    cosine_B = (embed(packed_model(weights, **options), texts()) * reference(weights, texts())).sum(
        1
    )
    assert 0 < 1 - cosine_B.min() < loss


def test_a_released_checkpoint_is_read(tmp_path):
    weights = open_weights(open_checkpoint(write_released(tmp_path / "model")))
    np.testing.assert_allclose(
        embed(packed_model(weights), texts()), reference(weights, texts()), atol=TOLERANCE
    )
