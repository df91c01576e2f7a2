"""Tests of nvembed_deploy/train/loss.py against sums written out."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from nvembed_deploy.train.loss import allowed_passages, info_nce


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 8, generator=generator), dim=-1)


def by_hand(query, passage, allowed, temperature) -> float:
    total = 0.0
    for q in range(len(query)):
        scores = [math.exp(float(query[q] @ p) / temperature) for p in passage]
        below = sum(s for s, use in zip(scores, allowed[q], strict=True) if use)
        total -= math.log(scores[q] / below)
    return total / len(query)


def test_it_is_the_formula() -> None:
    query, passage = unit(3, 0), unit(7, 1)
    allowed = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    allowed[:, :3] |= torch.eye(3, dtype=torch.bool)
    loss = info_nce(query, passage, allowed, 0.1)
    assert math.isclose(float(loss), by_hand(query, passage, allowed, 0.1), rel_tol=1e-5)


def test_cosines_are_float32_where_the_model_is_bfloat16() -> None:
    query, passage = unit(3, 0), unit(7, 1)
    allowed = torch.ones(3, 7, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(query, passage, allowed, 0.02)
    assert float(loss) == float(info_nce(query, passage, allowed, 0.02))


def test_only_a_querys_own_negatives_count_out_of_batch() -> None:
    owner = torch.tensor([0, 1, 0, 1, 1])
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1, 4] = False
    assert allowed_passages(owner, keep, in_batch=True).tolist() == keep.tolist()
    own = allowed_passages(owner, keep, in_batch=False)
    assert own.int().tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 1, 0]]


def test_a_passage_that_is_not_compared_gets_no_gradient() -> None:
    query, passage = unit(2, 0), unit(3, 1).requires_grad_()
    allowed = torch.tensor([[True, True, False], [True, True, False]])
    info_nce(query, passage, allowed, 0.1).backward()
    assert passage.grad is not None
    assert passage.grad[2].abs().max() == 0 < passage.grad[:2].abs().min()
