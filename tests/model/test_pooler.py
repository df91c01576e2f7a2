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
from nvembed_deploy.spec import ModelSpec, PoolerForm
from tests import factories, reference
from tests.model.test_weights import CountedTensor

Poolers = tuple[LatentPooler, FoldedLatentPooler]


@pytest.fixture(scope="module")
def poolers(tiny_weights: Weights) -> Poolers:
    return both(tiny_weights)


def both(weights: Weights) -> Poolers:
    faithful, folded = (load_model(weights, form).pooler for form in PoolerForm)
    return faithful, folded  # type: ignore[return-value]


def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Return states_BSD with one large token, and a pool mask_BS with holes on the left."""
    hidden = torch.from_numpy(factories.values("hidden", (3, 9, 64))) * 3
    hidden[1, 4] *= 50
    mask = torch.ones(3, 9)
    mask[0, :4] = 0
    mask[2, 5:] = 0
    return hidden, mask


def test_the_folded_pooler_is_smaller(poolers: Poolers) -> None:
    faithful, folded = (sum(p.numel() for p in pooler.parameters()) for pooler in poolers)
    assert folded < faithful


@torch.inference_mode()
@pytest.mark.parametrize("spec", [factories.TINY, factories.UNLIKE], ids=["tiny", "unlike"])
def test_both_forms_match_the_papers_formulas(spec: ModelSpec) -> None:
    """Measured: 2.9e-7 of a text's largest state; 8e-5 with the other GELU (tanh)."""
    arrays = factories.weights(spec)
    tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    held = {name: CountedTensor(array) for name, array in arrays.items()}
    hidden, mask = states()
    for pooler in both(Weights(spec, held)):
        for row, got in enumerate(pooler(hidden, mask)):
            expected = reference.latent_states(spec, tensors, hidden[row].double())
            expected = expected[mask[row].bool()].mean(0)
            error = (got - expected).abs().max() / hidden[row].abs().max()
            assert error <= 2e-6


def test_masked_tokens_do_not_matter(poolers: Poolers) -> None:
    hidden, mask = states()
    changed = hidden.clone()
    changed[mask == 0] = 1e3
    for pooler in poolers:
        assert torch.equal(pooler(hidden, mask), pooler(changed, mask))


def test_an_empty_mask_gives_zeros(poolers: Poolers) -> None:
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
