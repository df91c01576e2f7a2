"""Tests of batches through the packed model, recorded shapes included."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import InputError
from nvembed_deploy.model.packed.batch import Segments
from nvembed_deploy.runtimes.packed_runtime import (
    TEXT_SIZES,
    TOKEN_SIZES,
    PackedRuntime,
    size_for,
)
from nvembed_deploy.spec import Pooling
from nvembed_deploy.text import Batch, Tokens, collate
from tests.model.packed.test_model import packed_model, weights_of, with_pooling

LENGTHS = (9, 4, 7)


@pytest.fixture
def model(tiny_checkpoint: Path):
    with load_encoder(tiny_checkpoint, "torch", device="cpu") as encoder:
        yield encoder.runtime._model


def batch(*lengths: int) -> Batch:
    return collate([Tokens(np.arange(3, 3 + size), 1) for size in lengths], 2)


def record_by_running(recorded: list[tuple[int, int]]):
    """Record a shape as what runs the model on the tensors alone, as a CUDA graph would."""

    def record(model, kept):
        recorded.append((len(kept.ids_T), kept.num_texts))
        return lambda: model(replace(kept, texts=reread(kept.texts), kept=reread(kept.kept)))

    return record


def reread(segments: Segments) -> Segments:
    """Take the lengths from the tensor, where a GPU's kernel reads them."""
    return replace(segments, lengths=tuple(segments.cuts.diff().tolist()))


def test_a_shape_is_recorded_when_it_comes_again(model):
    recorded: list[tuple[int, int]] = []
    runtime = PackedRuntime(model, graphs=4, record=record_by_running(recorded))
    for _ in range(4):
        runtime.embed(batch(*LENGTHS))
    assert recorded == [(32, 4)]


def test_a_replay_computes_the_batch_it_is_given(model):
    plain = PackedRuntime(model)
    replaying = PackedRuntime(model, graphs=4, record=record_by_running([]))
    for lengths in ((9, 4, 7), (8, 5, 6), (17,), (12, 2, 3, 4), (3, 3, 14)):
        np.testing.assert_allclose(
            replaying.embed(batch(*lengths)), plain.embed(batch(*lengths)), atol=2e-6
        )


def test_a_long_batch_is_not_recorded(model):
    recorded: list[tuple[int, int]] = []
    runtime = PackedRuntime(model, graphs=4, record=record_by_running(recorded))
    for _ in range(3):
        assert runtime.embed(batch(*[TOKEN_SIZES[-1] // 2] * 3)).shape[0] == 3
    assert not recorded


def test_a_pooler_whose_rows_see_each_other_is_not_recorded():
    """Filling would be rows of a text (see `widen`)."""
    recorded: list[tuple[int, int]] = []
    model = packed_model(weights_of(with_pooling(Pooling.SELF_ATTENTION)))
    runtime = PackedRuntime(model, graphs=4, record=record_by_running(recorded))
    for _ in range(3):
        runtime.embed(batch(*LENGTHS))
    assert not recorded


@pytest.mark.parametrize("sizes", [TOKEN_SIZES, TEXT_SIZES])
def test_sizes_waste_at_most_half(sizes):
    for count in range(sizes[0], sizes[-1] + 1):
        size = size_for(count, sizes)
        assert size is not None
        assert count <= size < 2 * count
    assert size_for(sizes[-1] + 1, sizes) is None


def test_a_shape_that_cannot_be_recorded_is_run_and_no_other_is_tried(model, caplog):
    tried: list[int] = []

    def fail(_, kept):
        tried.append(kept.num_texts)
        raise RuntimeError("CUDA out of memory")

    plain, runtime = PackedRuntime(model), PackedRuntime(model, graphs=4, record=fail)
    for lengths in (LENGTHS, LENGTHS, LENGTHS, (20,), (20,)):
        np.testing.assert_allclose(
            runtime.embed(batch(*lengths)), plain.embed(batch(*lengths)), atol=2e-6
        )
    assert tried == [4]
    assert "out of memory" in caplog.text


def test_threads_do_not_get_each_others_rows(model):
    """Recorded shapes share their inputs: a batch is copied in and run before the next."""
    runtime = PackedRuntime(model, graphs=4, record=record_by_running([]))
    batches = [batch(*lengths) for lengths in ((9, 4, 7), (8, 5, 6), (7, 7, 7), (3, 9, 9))]
    expected = [PackedRuntime(model).embed(one) for one in batches]
    for one in batches:
        runtime.embed(one)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, right in zip(pool.map(runtime.embed, batches), expected, strict=True):
                np.testing.assert_allclose(got, right, atol=2e-6)


def test_a_fork_is_refused_where_it_would_wait_for_threads_that_it_has_not(model, monkeypatch):
    runtime, before = PackedRuntime(model), torch.get_num_threads()
    expected, own = runtime.embed(batch(*LENGTHS)), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    try:
        torch.set_num_threads(2)
        with pytest.raises(InputError, match=f"opened in process {own}, of which this is a fork"):
            runtime.embed(batch(*LENGTHS))
        torch.set_num_threads(1)
        np.testing.assert_allclose(runtime.embed(batch(*LENGTHS)), expected, atol=2e-6)
    finally:
        torch.set_num_threads(before)
