"""Tests of nvembed_deploy/export/row_ranges.py: which inputs get a range for each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from nvembed_deploy.export.formats import SCHEMES, Activations, Formats
from nvembed_deploy.export.linear_weights import LinearWeights, open_linears
from nvembed_deploy.export.row_ranges import find_uneven
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch
from tests.export.test_calibrate import all_texts

__all__ = ["all_texts"]
INT8 = Formats(SCHEMES["int8"].linear)
LAYER = "backbone.layers.0."


def uneven(weights: Weights, formats: Formats, batches: Sequence[Batch]) -> tuple[str, ...]:
    with open_linears(weights, is_folded=True) as linears:
        return find_uneven(linears, formats, batches)


@pytest.fixture
def with_a_massive_token(
    tiny_weights: Weights, all_texts: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> Weights:
    """Make the first token's features of layer 0 hundreds of times the other tokens'."""
    first = int(all_texts[0].input_ids_BS[0, 0])
    name = "backbone.embed_tokens.weight"
    token_I = tiny_weights.read_float32(name, slice(first, first + 1))[0]
    load = LinearWeights.load

    def planted(linears: LinearWeights, asked: str) -> np.ndarray:
        weight_OI = load(linears, asked)
        if asked != LAYER + "mlp.up_proj":
            return weight_OI
        return weight_OI + 100 * np.outer(np.ones(len(weight_OI)), token_I).astype(np.float32)

    monkeypatch.setattr(LinearWeights, "load", planted)
    return tiny_weights


def test_what_a_norm_gives_fits_one_range(tiny_weights: Weights, all_texts: list[Batch]) -> None:
    tails = {name.split(".")[-1] for name in uneven(tiny_weights, INT8, all_texts)}
    assert not tails & {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "scores"}


def test_the_input_with_a_massive_token_is_found(
    with_a_massive_token: Weights, all_texts: list[Batch]
) -> None:
    assert LAYER + "mlp.down_proj" in uneven(with_a_massive_token, INT8, all_texts)


def test_linears_that_share_an_input_share_its_ranges(
    tiny_weights: Weights, all_texts: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.export.row_ranges._WORST", 0.0)
    found = uneven(tiny_weights, INT8, all_texts)
    parts = {name.removeprefix(LAYER).split(".")[-1] for name in found if name.startswith(LAYER)}
    assert {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj", "down_proj"} == parts


def test_what_is_kept_or_has_no_rounded_input_is_not_measured(
    with_a_massive_token: Weights, all_texts: list[Batch]
) -> None:
    kept = Formats(INT8.linear, keep=("*down_proj",))
    assert LAYER + "mlp.down_proj" not in uneven(with_a_massive_token, kept, all_texts)
    weights_alone = Formats(SCHEMES["int8-weight"].linear)
    assert uneven(with_a_massive_token, weights_alone, all_texts) == ()


def test_measuring_is_the_same_twice_and_leaves_gradients_on(
    with_a_massive_token: Weights, all_texts: list[Batch]
) -> None:
    first, second = (uneven(with_a_massive_token, INT8, all_texts) for _ in range(2))
    assert first == second != ()
    assert torch.is_grad_enabled()


def test_names_that_match_have_a_range_per_token_and_others_one() -> None:
    formats = Formats(INT8.linear, per_token=("*.3.mlp.down_proj",))
    kinds = {
        name: form.activations
        for name in ("backbone.layers.3.mlp.down_proj", "backbone.layers.2.mlp.down_proj")
        if (form := formats.of(name, 64)) is not None
    }
    assert list(kinds.values()) == [Activations.ROW, Activations.STATIC]
