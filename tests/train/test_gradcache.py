"""Tests of nvembed_deploy/train/gradcache.py: chunks change memory, never the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvembed_deploy.text import Tokenizer, Tokens
from nvembed_deploy.train.batch import make_batch
from nvembed_deploy.train.example import to_example
from nvembed_deploy.train.gradcache import Budget, backward, embedder, split_rows
from nvembed_deploy.train.learner import Learner, open_learner
from nvembed_deploy.train.loss import info_nce
from nvembed_deploy.train.recipe import TextSection
from tests.train import pairs

WHOLE = Budget(1 << 20, 1 << 20)
CPU = torch.device("cpu")


@pytest.fixture
def opened(tiny_base: Path, tmp_path: Path) -> tuple[Learner, Tokenizer]:
    torch.manual_seed(0)
    recipe = pairs.recipe(tiny_base, tmp_path, tmp_path, adapter={"dropout": 0.0})
    learner, tokenizer = open_learner(recipe, torch.float32, CPU)
    for name, parameter in learner.trained().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return learner, tokenizer


def gradients(learner: Learner, tokenizer: Tokenizer, budget: Budget) -> dict[str, torch.Tensor]:
    examples = [to_example(pairs.pair(i)) for i in range(9)]
    batch = make_batch(examples, tokenizer, TextSection(max_tokens=64))
    torch.manual_seed(5)

    def loss_of(embedding_ND: torch.Tensor) -> torch.Tensor:
        allowed_QP = torch.from_numpy(batch.keep_QP)
        return info_nce(embedding_ND[:9], embedding_ND[9:], allowed_QP, 0.05)

    learner.zero_grad()
    backward(batch.rows, embedder(learner, tokenizer.spec.pad_id, CPU), loss_of, budget)
    return {n: p.grad.clone() for n, p in learner.trained().items() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 40, 150])
@pytest.mark.parametrize("live", [0, 100, 1 << 20])
def test_chunks_give_the_unchunked_gradient(
    opened: tuple[Learner, Tokenizer], chunk: int, live: int
) -> None:
    whole = gradients(*opened, WHOLE)
    chunked = gradients(*opened, Budget(chunk, live))
    assert set(chunked) == set(whole) == set(opened[0].trained())
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert ((chunked[name] - gradient).abs().max() / scale) <= 1e-5, name


def test_what_is_computed_twice_drops_the_same_activations(tiny_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = pairs.recipe(tiny_base, tmp_path, tmp_path, adapter={"dropout": 0.5})
    learner, tokenizer = open_learner(recipe, torch.float32, CPU)
    kept = gradients(learner, tokenizer, Budget(60, 1 << 20))
    twice = gradients(learner, tokenizer, Budget(60, 0))
    for name, gradient in kept.items():
        assert torch.allclose(twice[name], gradient, atol=1e-6), name


@pytest.mark.parametrize("place", ["cpu", "cuda:0", "cuda:1"])
def test_what_is_computed_twice_draws_the_same_wherever_the_model_is(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Two GPUs are played: their generators are all that is asked of them."""
    gpus = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    played: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: len(gpus),
        "get_rng_state": lambda gpu=0: gpus[gpu].get_state(),
        "set_rng_state": lambda state, gpu=0: gpus[gpu].set_state(state),
    }
    for module, (name, stand_in) in product((torch.cuda, torch.cuda.random), played.items()):
        monkeypatch.setattr(module, name, stand_in, raising=False)
    generator = None if place == "cpu" else gpus[int(place[-1])]
    weight = torch.ones(3, requires_grad=True)
    drawn: list[torch.Tensor] = []

    def embed(rows: Sequence[Tokens]) -> torch.Tensor:
        drawn.append(torch.rand(len(rows), 3, generator=generator))
        return weight * drawn[-1]

    rows = [Tokens(np.arange(4), num_masked=0)] * 6
    backward(rows, embed, lambda embedding_ND: embedding_ND.square().sum(), Budget(8, 0))
    first, again = drawn[:3], drawn[3:]
    assert len(again) == 3
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])


def test_a_loss_that_is_not_finite_leaves_no_gradient(opened: tuple[Learner, Tokenizer]) -> None:
    learner, tokenizer = opened
    rows = tokenizer.tokenize(["the cat", "a mat"])
    embed = embedder(learner, tokenizer.spec.pad_id, CPU)
    loss = backward(rows, embed, lambda e: e.sum() * float("nan"), WHOLE)
    assert math.isnan(loss)
    assert all(p.grad is None for p in learner.parameters())


def test_all_ranks_run_the_model_equally_often() -> None:
    random = np.random.default_rng(0)
    for count, world in product((1, 2, 3, 17, 40), (1, 2, 3, 8)):
        lengths_N = random.integers(3, 65, count)
        for budget in (Budget(100, 0), Budget(100, 150), Budget(100, 300), WHOLE):
            splits = [split_rows(lengths_N, budget, rank, world) for rank in range(world)]
            assert len({tuple(is_live for _, is_live in split) for split in splits}) == 1
            rows = [row for split in splits for indices, _ in split for row in indices]
            assert sorted(rows) == list(range(count))
            for indices, _ in (chunk for split in splits for chunk in split):
                longest = max(lengths_N[indices], default=0)
                assert len(indices) <= 1 or len(indices) * longest <= budget.chunk_tokens
