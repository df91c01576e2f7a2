"""Tests of nvembed_deploy/export/sensitivity.py: 16 bit goes where rounding harms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export.blocks import Blocks, linears_of
from nvembed_deploy.export.calibration_texts import few_of
from nvembed_deploy.export.formats import SCHEMES, Formats
from nvembed_deploy.export.linear_weights import LinearWeights, open_linears
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.export.rotation import RotatedWeights
from nvembed_deploy.export.sensitivity import Harm, choose_kept, measure_harm
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch
from tests import factories
from tests.export.test_calibrate import all_texts
from tests.full_disk import files_up_to

__all__ = ["all_texts"]
LAYERS = factories.TINY.backbone.num_layers


def harms_of(weights: Weights, formats: Formats, batches: Sequence[Batch]) -> list[Harm]:
    with open_linears(weights, is_folded=True) as linears:
        return measure_harm(linears, formats, batches)


@pytest.mark.parametrize("name", ["fp8", "int8", "int4-weight"])
def test_each_group_that_reads_one_input_is_measured_once(
    tiny_weights: Weights, all_texts: list[Batch], name: str
) -> None:
    scheme = SCHEMES[name]
    weights = RotatedWeights(tiny_weights) if scheme.rotates else tiny_weights
    keep = ("pooler.values", "*.1.mlp.down_proj")
    formats = Formats(scheme.linear, keep, kept=scheme.kept)
    harms = harms_of(weights, formats, all_texts)
    assert len(harms) == 4 * LAYERS - 1 + 3
    tails = [tuple(n.split(".")[-1] for n in harm.names) for harm in harms[:3]]
    assert tails == [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj")]
    assert all(1e-8 < harm.error < 0.2 for harm in harms)


def test_finer_numbers_harm_less(tiny_weights: Weights, all_texts: list[Batch]) -> None:
    keep = ("pooler.values",)
    coarse, fine = (
        harms_of(tiny_weights, Formats(SCHEMES[name].linear, keep), all_texts)
        for name in ("int4-weight", "int8-weight")
    )
    for rough, smooth in zip(coarse, fine, strict=True):
        assert rough.names == smooth.names
        assert rough.error > 20 * smooth.error


def test_a_linear_with_one_huge_weight_is_the_most_harmed(
    tiny_weights: Weights, all_texts: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 4 bits one huge weight makes zeros of those that share its scale."""
    name, formats = "backbone.layers.1.self_attn.o_proj", Formats(SCHEMES["int4-weight"].linear)
    formats = Formats(formats.linear, keep=("pooler.*",))
    load = LinearWeights.load

    def planted(linears: LinearWeights, asked: str) -> np.ndarray:
        weight = load(linears, asked)
        if asked == name:
            weight = weight.copy()
            weight[:, 3] = 40 * abs(weight).max()
        return weight

    monkeypatch.setattr(LinearWeights, "load", planted)
    harms = harms_of(tiny_weights, formats, all_texts)
    worst = max(harms, key=lambda harm: harm.error / harm.num_weights)
    assert worst.names == (name,)
    assert name in choose_kept(harms, 0.1)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_harm_is_how_far_the_embeddings_move_when_one_group_is_rounded(
    tiny_weights: Weights, all_texts: list[Batch], name: str
) -> None:
    """To first order and along one direction of each text: a factor of two holds it."""
    formats = Formats(SCHEMES[name].linear)
    for place, harm in enumerate(harms_of(tiny_weights, formats, all_texts)):
        if place % 3 == 0:
            moved = distance(tiny_weights, formats, few_of(all_texts), harm.names)
            assert moved / 2 < harm.error**0.5 < moved * 2, harm.names


def distance(
    weights: Weights, formats: Formats, batches: Sequence[Batch], rounded: tuple[str, ...]
) -> float:
    """Return how far unit embeddings move where only these linears are rounded, to nearest."""

    def embed(names: tuple[str, ...]) -> torch.Tensor:
        blocks = Blocks(linears, formats, batches)
        states = blocks.embed()
        for index in range(LAYERS):
            states = list(blocks.through(only(blocks.layer(index), names), states))
        pooler = only(blocks.pooler(), names)
        return functional.normalize(torch.cat(list(blocks.pool(pooler, blocks.normed(states)))))

    with open_linears(weights, is_folded=True) as linears, torch.inference_mode():
        return float((embed(rounded) - embed(())).norm(dim=-1).median())


def only(block: nn.Module, names: tuple[str, ...]) -> nn.Module:
    for linear in linears_of(block):
        if linear.name not in names:
            linear.form = None
        elif linear.form is not None:
            linear.take(round_nearest(linear.weight_OI, linear.form))
    return block


def test_a_full_disk_under_the_temporary_folder_is_named(
    tiny_weights: Weights, all_texts: list[Batch]
) -> None:
    with files_up_to(20_000), pytest.raises(ArtifactError, match="cannot write") as full:
        harms_of(tiny_weights, Formats(SCHEMES["fp8"].linear), all_texts)
    assert "TMPDIR" in full.value.fix


def test_the_share_is_never_exceeded_and_is_spent_where_it_pays_most() -> None:
    harms = [Harm(("a", "b"), 60, 6.0), Harm(("c",), 30, 4.0), Harm(("d",), 10, 0.1)]
    assert choose_kept(harms, 0) == ()
    assert choose_kept(harms, 0.3) == ("c",)
    assert choose_kept(harms, 0.4) == ("c", "d")
    assert choose_kept(harms, 0.6) == ("c", "d"), "most harm for each weight first"
    assert choose_kept(harms, 0.95) == ("a", "b", "c")
    assert choose_kept(harms, 1.0) == ("a", "b", "c", "d")


def test_measuring_leaves_no_gradient_and_no_randomness(
    tiny_weights: Weights, all_texts: list[Batch]
) -> None:
    formats = Formats(SCHEMES["fp8"].linear)
    first, second = (harms_of(tiny_weights, formats, all_texts) for _ in range(2))
    assert first == second
    assert torch.is_grad_enabled()
