"""Tests of nvembed_deploy/model/pooler.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.model.nvembed import load_model
from nvembed_deploy.model.pooler import (
    EosPooler,
    FoldedLatentPooler,
    LatentPooler,
    SelfAttentionPooler,
    mean_pool,
)
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import PoolerForm
from tests import factories, reference


@pytest.fixture(scope="module")
def poolers(tiny_weights: Weights) -> tuple[LatentPooler, FoldedLatentPooler]:
    faithful = load_model(tiny_weights).pooler
    folded = load_model(tiny_weights, PoolerForm.FOLDED).pooler
    return faithful, folded  # type: ignore[return-value]


def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Return states_BSD with one large token, and a pool mask_BS with holes on the left."""
    hidden = torch.from_numpy(factories.values("hidden", (3, 9, 64))) * 3
    hidden[1, 4] *= 50
    mask = torch.ones(3, 9)
    mask[0, :4] = 0
    mask[2, 5:] = 0
    return hidden, mask


@torch.inference_mode()
def test_folded_equals_faithful(poolers: tuple[LatentPooler, FoldedLatentPooler]) -> None:
    faithful, folded = poolers
    hidden, mask = states()
    difference = (faithful(hidden, mask) - folded(hidden, mask)).abs().max()
    assert difference <= 2e-5 * hidden.abs().max()


def test_the_folded_pooler_is_smaller(poolers: tuple[LatentPooler, FoldedLatentPooler]) -> None:
    faithful, folded = (sum(p.numel() for p in pooler.parameters()) for pooler in poolers)
    assert folded < faithful


@torch.inference_mode()
def test_faithful_matches_the_papers_formulas(
    poolers: tuple[LatentPooler, FoldedLatentPooler],
) -> None:
    hidden, mask = states()
    tensors = {n: torch.from_numpy(a).double() for n, a in factories.weights().items()}
    for row in range(3):
        expected = reference.latent_states(factories.TINY, tensors, hidden[row].double())
        expected = expected[mask[row].bool()].mean(0)
        got = poolers[0](hidden, mask)[row].double()
        assert torch.allclose(got, expected, atol=1e-5 * float(hidden.abs().max()))


def test_masked_tokens_do_not_matter(poolers: tuple[LatentPooler, FoldedLatentPooler]) -> None:
    hidden, mask = states()
    changed = hidden.clone()
    changed[mask == 0] = 1e3
    for pooler in poolers:
        assert torch.equal(pooler(hidden, mask), pooler(changed, mask))


def test_an_empty_mask_gives_zeros(poolers: tuple[LatentPooler, FoldedLatentPooler]) -> None:
    hidden, mask = states()
    mask[1] = 0
    for pooler in poolers:
        pooled = pooler(hidden, mask)
        assert not pooled[1].any()
        assert pooled[0].any()


def test_the_mean_is_taken_in_float32() -> None:
    hidden = torch.full((1, 3000, 4), 60000.0, dtype=torch.float16)
    pooled = mean_pool(hidden, torch.ones(1, 3000))
    assert np.allclose(pooled.numpy(), hidden[0, 0].float().numpy())


def test_eos_pooling_takes_the_last_kept_token() -> None:
    hidden_BSD = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask_BS = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    pooled_BD = EosPooler()(hidden_BSD, mask_BS)
    assert torch.equal(pooled_BD[0], hidden_BSD[0, 3])
    assert torch.equal(pooled_BD[1], hidden_BSD[1, 4])
    assert not pooled_BD[2].any()


def test_self_attention_pooling_sees_kept_tokens_only() -> None:
    torch.manual_seed(0)
    pooler = SelfAttentionPooler(factories.TINY.pooler, factories.TINY.backbone)
    hidden_BSD, mask_BS = torch.randn(2, 6, 64), torch.tensor([[0, 1, 1, 1, 0, 0], [0] * 6])
    pooled_BD = pooler(hidden_BSD, mask_BS)
    alone_BD = pooler(hidden_BSD[:1, 1:4], mask_BS[:1, 1:4])
    assert torch.allclose(pooled_BD[:1], alone_BD, atol=1e-6)
    assert torch.isfinite(pooled_BD).all()
    other_BD = pooler(hidden_BSD[:1, [3, 2, 1]], mask_BS[:1, 1:4])
    assert torch.allclose(alone_BD, other_BD, atol=1e-6)  # no order
