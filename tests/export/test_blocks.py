"""Tests of nvembed_deploy/export/blocks.py: they are the model, and weigh its tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nvembed_deploy.export.blocks import Blocks
from nvembed_deploy.export.formats import Formats
from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch
from tests import factories, reference
from tests.export.test_graph import batch

INPUTS = batch((4, 11, 7))


@pytest.fixture
def blocks(tiny_weights: Weights) -> Iterator[Blocks]:
    arrays = {f"{name}_BS": array for name, array in INPUTS.items()}
    with open_linears(tiny_weights, is_folded=True) as linears, torch.inference_mode():
        yield Blocks(linears, Formats(), [Batch(**arrays)])


def test_blocks_in_a_row_are_the_second_implementation(blocks: Blocks) -> None:
    states = blocks.embed()
    for index in range(factories.TINY.backbone.num_layers):
        states = list(blocks.through(blocks.layer(index), states))
    (embedding_BD,) = blocks.pool(blocks.pooler(), blocks.normed(states))
    got = torch.nn.functional.normalize(embedding_BD, dim=-1).numpy()
    arrays = (INPUTS["input_ids"], INPUTS["attention_mask"], INPUTS["pool_mask"])
    expected = reference.embed(factories.TINY, factories.weights(), arrays)
    assert np.abs(got - expected).max() <= 2e-6


def test_a_token_counts_by_how_small_its_state_is_and_padding_not(blocks: Blocks) -> None:
    seen: list[torch.Tensor] = []
    (hidden,) = states = blocks.embed()
    list(blocks.through(blocks.layer(0), states, seen.append))
    size_BS = hidden.square().mean(-1).sqrt().numpy()
    np.testing.assert_allclose(
        seen[0][..., 0].numpy() * size_BS, INPUTS["attention_mask"], rtol=1e-5
    )


def test_in_the_pooler_what_is_pooled_counts_alike(blocks: Blocks) -> None:
    seen: list[torch.Tensor] = []
    list(blocks.pool(blocks.pooler(), blocks.embed(), seen.append))
    np.testing.assert_array_equal(seen[0][..., 0], INPUTS["pool_mask"])
