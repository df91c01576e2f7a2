"""Tests of nvembed_deploy/model/streaming.py."""

from __future__ import annotations

import numpy as np
import torch

from nvembed_deploy.model.nvembed import load_model
from nvembed_deploy.model.streaming import StreamingModel
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch


def batch(length: int, kept: int) -> Batch:
    ids = (np.arange(2 * length).reshape(2, length) * 7 % 300).astype(np.int64)
    attention = np.ones_like(ids)
    attention[1, kept:] = 0
    pool = attention.copy()
    pool[0, :3] = 0
    return Batch(ids, attention, pool)


def test_streaming_equals_the_whole_model(tiny_weights: Weights) -> None:
    batches = [batch(11, 6), batch(5, 5)]
    model = load_model(tiny_weights)
    *_, last = StreamingModel(tiny_weights, batches).run()
    for got, b in zip(last, batches, strict=True):
        inputs = (b.input_ids_BS, b.attention_mask_BS, b.pool_mask_BS)
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(array) for array in inputs)).numpy()
        assert np.abs(got - expected).max() <= 1e-6


def test_there_is_one_state_per_block(tiny_weights: Weights) -> None:
    states = list(StreamingModel(tiny_weights, [batch(5, 5)]).run())
    assert len(states) == tiny_weights.spec.backbone.num_layers + 2
    assert states[0][0].shape == (2, 5, 64)
    assert states[-1][0].shape == (2, 64)
