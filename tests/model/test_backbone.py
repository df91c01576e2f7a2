"""Tests of nvembed_deploy/model/backbone.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import MistralModel

from nvembed_deploy.model.backbone import Backbone, padding_mask
from tests.factories import TINY


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(TINY.backbone).eval()


@torch.inference_mode()
def change_at_first_token(backbone: Backbone, length: int) -> float:
    """Return how far the first token's state moves when the last token changes."""
    ids = torch.arange(length)[None] % 300
    mask = torch.ones_like(ids)
    before = backbone(ids, mask)
    ids = ids.clone()
    ids[0, -1] = 310
    return float((backbone(ids, mask)[0, 0] - before[0, 0]).abs().max())


def test_the_last_token_reaches_the_first(backbone: Backbone) -> None:
    assert change_at_first_token(backbone, 16) > 1e-4


def test_the_last_token_reaches_the_first_beyond_4096_tokens(backbone: Backbone) -> None:
    assert change_at_first_token(backbone, 4200) > 1e-6


def test_a_causal_mask_would_be_noticed(backbone: Backbone) -> None:
    """The perturbation test can fail: transformers' own model, left as it comes, is causal."""
    stock = MistralModel(backbone.decoder.config).eval()
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        before = stock(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        ids[0, -1] = 310
        after = stock(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.equal(before[0, 0], after[0, 0])


def test_a_sliding_window_would_be_noticed() -> None:
    """The long perturbation test can fail: with a window nothing crosses 3 layers of 64."""
    torch.manual_seed(0)
    windowed = Backbone(TINY.backbone).eval()
    windowed.decoder.config.sliding_window = 64
    ids = torch.arange(600)[None] % 300
    distance = (torch.arange(600)[:, None] - torch.arange(600)[None]).abs()
    mask = torch.where(distance < 64, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        before = windowed.decoder(ids, attention_mask=mask).last_hidden_state
        ids[0, -1] = 310
        after = windowed.decoder(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(before[0, 0], after[0, 0])


def test_padding_does_not_change_the_states(backbone: Backbone) -> None:
    ids = torch.arange(12)[None]
    padded = torch.cat([ids, torch.full((1, 5), 2)], dim=1)
    mask = torch.cat([torch.ones(1, 12), torch.zeros(1, 5)], dim=1)
    with torch.inference_mode():
        alone = backbone(ids, torch.ones_like(ids))
        together = backbone(padded, mask)[:, :12]
    assert torch.allclose(alone, together, atol=1e-6)


@torch.inference_mode()
def test_eager_and_sdpa_attention_agree() -> None:
    backbone = Backbone(TINY.backbone).eval()
    ids, mask = torch.arange(20)[None], torch.ones(1, 20)
    sdpa = backbone(ids, mask)
    backbone.decoder.set_attn_implementation("eager")
    assert torch.allclose(backbone(ids, mask), sdpa, atol=1e-6)


def test_the_mask_is_a_view_and_never_square_in_memory() -> None:
    mask = padding_mask(torch.ones(2, 4096), torch.float32)
    assert mask.shape == (2, 1, 4096, 4096)
    assert mask.untyped_storage().nbytes() == 2 * 4096 * 4


def test_gradients_reach_every_parameter() -> None:
    backbone = Backbone(replace(TINY.backbone, num_layers=1))
    backbone(torch.arange(8)[None], torch.ones(1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@torch.no_grad()
def test_the_causal_ablation_is_transformers_own_causal_model(backbone: Backbone) -> None:
    causal = Backbone(replace(TINY.backbone, causal=True)).eval()
    causal.load_state_dict(backbone.state_dict())
    assert change_at_first_token(causal, 12) == 0
    plain = MistralModel(causal.decoder.config).eval()
    plain.load_state_dict(causal.decoder.state_dict())
    ids_BS = torch.arange(3, 15)[None]
    expected_BSD = plain(ids_BS, use_cache=False).last_hidden_state
    assert torch.allclose(causal(ids_BS, torch.ones_like(ids_BS)), expected_BSD, atol=1e-6)
