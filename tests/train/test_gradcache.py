"""Tests of nvembed_deploy/train/gradcache.py: chunks change memory, never the gradient."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from nvembed_deploy.text import Tokenizer
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
