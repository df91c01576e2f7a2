"""Tests of nvembed_deploy/model/streaming.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.model.nvembed import load_model
from nvembed_deploy.model.streaming import StreamingModel
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.text import Batch
from tests import factories, reference
from tests.model.test_weights import CountedTensor


def batch(length: int, kept: int) -> Batch:
    ids = (np.arange(2 * length).reshape(2, length) * 7 % 300).astype(np.int64)
    attention = np.ones_like(ids)
    attention[1, kept:] = 0
    pool = attention.copy()
    pool[0, :3] = 0
    return Batch(ids, attention, pool)


@pytest.mark.parametrize("spec", [factories.TINY, factories.UNLIKE], ids=["tiny", "unlike"])
def test_whole_and_streamed_are_the_model_of_the_formulas(spec: ModelSpec) -> None:
    """Measured: 1.8e-7."""
    arrays, batches = factories.weights(spec), [batch(11, 6), batch(5, 5)]
    weights = Weights(spec, {name: CountedTensor(array) for name, array in arrays.items()})
    model = load_model(weights)
    *_, streamed = StreamingModel(weights, batches).run()
    for got, b in zip(streamed, batches, strict=True):
        inputs = (b.input_ids_BS, b.attention_mask_BS, b.pool_mask_BS)
        with torch.inference_mode():
            whole = model(*(torch.from_numpy(array) for array in inputs)).numpy()
        expected = reference.embed(spec, arrays, inputs)
        assert np.abs(got - expected).max() <= 1e-6
        assert np.abs(whole - expected).max() <= 1e-6


def test_there_is_one_state_per_block(tiny_weights: Weights) -> None:
    states = list(StreamingModel(tiny_weights, [batch(5, 5)]).run())
    assert len(states) == tiny_weights.spec.backbone.num_layers + 2
    assert states[0][0].shape == (2, 5, 64)
    assert states[-1][0].shape == (2, 64)
