"""Tests of nvembed_deploy/export/plan.py: what cannot be is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "int8", "keep": ["*.down_proj", "nope.*"]},
        {"precision": "int8", "per_token": ["nope.*"]},
    ],
    ids=lambda values: list(values)[-1],
)
def test_a_pattern_that_means_no_linear_is_refused_when_planning(
    tiny_checkpoint: Path, values: dict[str, Any]
) -> None:
    key = list(values)[-1]
    with pytest.raises(RecipeError, match=rf"{key} has 'nope\.\*', which no linear") as refused:
        plan_export(tiny_checkpoint, load_recipe(None, values))
    assert "backbone.layers.0.self_attn." in refused.value.fix


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "int8", "calibration": "nowhere.jsonl"},
        {"engine": {"flavour": "tensorrt-rtx", "profile_from": "nowhere.jsonl"}},
    ],
    ids=["calibration", "profile_from"],
)
def test_texts_that_cannot_be_read_are_refused_when_planning(
    tiny_checkpoint: Path, values: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.jsonl cannot be read"):
        plan_export(tiny_checkpoint, load_recipe(None, values))


def test_half_a_character_in_a_text_is_refused_when_planning(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "\\ud83d"}\n')
    recipe = load_recipe(None, {"precision": "int8", "calibration": str(path)})
    with pytest.raises(RecipeError, match=r"calibration .*texts\.jsonl, line 2: text has half"):
        plan_export(tiny_checkpoint, recipe)
