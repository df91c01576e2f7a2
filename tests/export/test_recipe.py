"""Tests of nvembed_deploy/export/recipe.py: what is chosen, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.__main__ import main
from nvembed_deploy.export.engine_options import EngineOptions
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.spec import PoolerForm, Precision


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_the_defaults_hold() -> None:
    recipe = load_recipe(None)
    assert recipe == ExportRecipe()
    assert (recipe.precision, recipe.opset, recipe.pooler) == (
        Precision.FP16,
        23,
        PoolerForm.FOLDED,
    )


def test_an_override_beats_the_file_and_none_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, 'precision = "bf16"\nopset = 20\npooler = "faithful"\n')
    recipe = load_recipe(path, {"precision": "fp32", "opset": None, "pooler": None})
    assert recipe.precision is Precision.FP32
    assert (recipe.opset, recipe.pooler) == (20, PoolerForm.FAITHFUL)


@pytest.mark.parametrize("engine", ['"tensorrt-rtx"', '{ flavour = "tensorrt-rtx" }'])
def test_what_is_given_of_an_engine_is_added_to_the_files(tmp_path: Path, engine: str) -> None:
    path = write(tmp_path, f"engine = {engine}\n")
    expected = EngineOptions(Flavour.RTX, targets=("sm89",))
    assert load_recipe(path, {"engine": {"targets": "sm89"}}).engine == expected
    assert load_recipe(path, {"engine": "tensorrt"}).engine == EngineOptions(Flavour.TENSORRT)


FAULTS = {
    "unknown key": ("percision = 'fp16'", ["unknown key 'percision'", "'precision'"]),
    "a table": ("[export]\nprecision = 'fp16'", ["unknown key 'export'"]),
    "unknown precision": ("precision = 'fp17'", ["precision is 'fp17'", "'fp16'"]),
    "precision of a wrong kind": ("precision = 16", ["precision is 16"]),
    "several precisions": ("precision = ['int8']", ["precision is ['int8']", "one of"]),
    "opset": ("opset = 19", ["opset is 19", "[20, 23]"]),
    "opset as a text": ("opset = '23'", ["opset is '23'"]),
    "opset as a fraction": ("opset = 23.0", ["opset is 23.0"]),
    "opset as a truth": ("opset = true", ["opset is True"]),
    "pooler": ("pooler = 'mean'", ["pooler is 'mean'", "['faithful', 'folded']"]),
    "path of a wrong kind": ("checkpoint = 3", ["checkpoint is 3", "a path"]),
    "no tokens": ("max_tokens = 2", ["max_tokens is 2", "at least 3"]),
    "prompts as a list": ("prompts = ['find']", ["prompts is ['find']", "a table of texts"]),
    "keep_share of all": ("precision = 'int8'\nkeep_share = 1", ["keep_share is 1", "below 1"]),
    "keep_share as a text": ("precision = 'fp8'\nkeep_share = '0.1'", ["keep_share is '0.1'"]),
    "fp8_rank no engine takes": ("precision = 'fp8'\nfp8_rank = 40", ["fp8_rank is 40", "of 16"]),
    "fp8_rank as a share": ("precision = 'fp8'\nfp8_rank = 0.1", ["fp8_rank is 0.1"]),
    "fp8_rank below none": ("precision = 'fp8'\nfp8_rank = -16", ["fp8_rank is -16"]),
    "several": (
        "a = 1\nopset = 1\npooler = 'x'",
        ["unknown key 'a'", "opset is 1", "pooler is 'x'"],
    ),
    "not TOML": ("precision: fp16", ["is not TOML", "line 1"]),
}


@pytest.mark.parametrize(("text", "named"), FAULTS.values(), ids=FAULTS)
def test_every_mistake_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: list[str]
) -> None:
    path = write(tmp_path, text)
    assert main(["--recipe", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: recipe {path}")
    assert "\nfix: " in err
    for word in named:
        assert word in err


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"precision = '\xff'")
    for name in ("missing.toml", "bytes.toml", "."):
        with pytest.raises(RecipeError, match=r"recipe .*(does not exist|is not TOML)"):
            load_recipe(tmp_path / name)


def test_the_options_are_named_where_there_is_no_file() -> None:
    with pytest.raises(RecipeError, match=r"the options: opset is 19"):
        load_recipe(None, {"opset": 19})
