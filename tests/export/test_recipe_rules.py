"""Tests of nvembed_deploy/export/recipe_rules.py: what does not go together is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.formats import SCHEMES, Activations, Code, Rounding
from nvembed_deploy.export.recipe import RANK, load_recipe
from nvembed_deploy.export.recipe_rules import settle
from nvembed_deploy.spec import Precision

RECIPES = Path(__file__).parents[2] / "export"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a share of nothing": ({"keep_share": 0.1}, "keep_share without a precision"),
    "twice of nothing": ({"fp8_rank": 32}, "fp8_rank without a precision"),
    "twice of int8": ({"precision": "int8", "fp8_rank": 32}, "fp8_rank with precision int8"),
    "twice without texts": (
        {"precision": "fp8", "fp8_rank": 32, "rounding": "nearest"},
        "fp8_rank without calibration",
    ),
    "twice of ranges": (
        {"precision": "fp8", "fp8_rank": 32, "ranges": "artifact"},
        "fp8_rank without calibration",
    ),
    "twice of one range": (
        {"precision": "fp8", "fp8_rank": 32, "activations": "static"},
        "fp8_rank with activations",
    ),
    "twice of floats": (
        {"precision": "fp8", "fp8_rank": 32, "activations": "float"},
        "fp8_rank with activations",
    ),
    "ranges by name, without texts": (
        {"precision": "int8", "per_token": ["*"], "rounding": "nearest"},
        "per_token without calibration",
    ),
    "ranges of all and of some": (
        {"precision": "int8", "per_token": ["*"], "activations": "row"},
        "per_token with activations",
    ),
    "ranges of weights alone": (
        {"precision": "int4-weight", "per_token": ["*"]},
        "per_token with precision int4-weight",
    ),
    "a device for nothing": ({"device": "cuda"}, "device without a precision"),
    "a device without texts": (
        {"precision": "int8", "device": "cuda", "rounding": "nearest"},
        "device without calibration",
    ),
    "a cache without texts": (
        {"precision": "int8", "cache": "folder", "rounding": "nearest", "keep_share": 0.1},
        "cache without calibration",
    ),
    "a device for ranges": (
        {"precision": "int8", "device": "cuda", "ranges": "artifact"},
        "device without calibration",
    ),
    "texts that nothing sees": (
        {"precision": "int8", "calibration": "texts.jsonl", "rounding": "nearest"},
        "calibration with rounding 'nearest', which reads no texts",
    ),
    "int4 of an older opset": ({"precision": "int4-weight", "opset": 20}, "INT4 needs opset 23"),
    "the faithful pooler": ({"precision": "int8", "pooler": "faithful"}, "which is for audits"),
    "the CPU's kernels in an engine": (
        {"precision": "int8-cpu", "engine": {"flavour": "tensorrt"}},
        "it is for ONNX Runtime on the CPU",
    ),
}


@pytest.mark.parametrize(("values", "named"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_go_together_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(None, values)


def test_texts_are_seen_where_what_to_keep_is_measured() -> None:
    keys = {"precision": "int8", "calibration": "texts.jsonl", "rounding": "nearest"}
    assert load_recipe(None, {**keys, "keep_share": 0.1}).calibration == "texts.jsonl"


def test_texts_beside_ranges_are_refused_once() -> None:
    keys = {"precision": "int8", "calibration": "texts.jsonl", "ranges": "artifact"}
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, keys)
    assert caught.value.problem == "the options: ranges with calibration"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_our_recipes_may_be_rounded_to_nearest(path: Path) -> None:
    assert load_recipe(path)
    if load_recipe(path).scheme:
        assert load_recipe(path, {"rounding": "nearest"}).rounding is Rounding.NEAREST


def test_a_scheme_is_moved_out_of_precision() -> None:
    clean: dict[str, Any] = {"precision": "int8-cpu"}
    assert settle(clean) == []
    assert clean == {"precision": Precision.FP32, "scheme": "int8-cpu"}


def test_ranges_that_are_there_settle_the_rounding() -> None:
    recipe = load_recipe(None, {"precision": "fp8", "ranges": "artifact"})
    assert recipe.rounding is Rounding.NEAREST


@pytest.mark.parametrize("scheme", SCHEMES)
def test_directions_are_rounded_twice_where_texts_show_them_and_only_in_fp8(scheme: str) -> None:
    rank = RANK if SCHEMES[scheme].linear.code is Code.FP8 else 0
    recipe = load_recipe(None, {"precision": scheme})
    assert recipe.formats.linear is not None
    assert recipe.formats.linear.rank == rank
    assert load_recipe(None, {"precision": scheme, "rounding": "nearest"}).rank == 0
    if rank:
        assert load_recipe(None, {"precision": scheme, "fp8_rank": 0}).rank == 0
        for activations in (Activations.STATIC.value, Activations.FLOAT.value):
            assert load_recipe(None, {"precision": scheme, "activations": activations}).rank == 0
