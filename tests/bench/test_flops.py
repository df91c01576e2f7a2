"""The arithmetic of a text, against a count by torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nvembed_deploy.bench.flops import model_flops
from nvembed_deploy.model.nvembed import load_model
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import ModelSpec, PoolerForm


def test_the_formula_counts_what_torch_counts(tiny_weights: Weights) -> None:
    model = load_model(tiny_weights, PoolerForm.FOLDED)
    for length in (40, 400):
        ids_BS = torch.ones(1, length, dtype=torch.int64)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(ids_BS, ids_BS, ids_BS)
        counted = counter.get_total_flops()
        assert counted == pytest.approx(model_flops(tiny_weights.spec, [length]), rel=1e-6)


def test_a_token_of_the_full_model_costs_about_two_flops_a_parameter() -> None:
    by_token = model_flops(ModelSpec(), [1000]) / 1000
    assert 14.3e9 < by_token < 15.5e9


def test_texts_add_up() -> None:
    spec = ModelSpec()
    assert model_flops(spec, [10, 20]) == model_flops(spec, [10]) + model_flops(spec, [20])
