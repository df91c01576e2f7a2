"""Tests of nvembed_deploy/export/plan.py: what cannot be is refused before anything is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.artifact import open_artifact
from nvembed_deploy.errors import ArtifactError, RecipeError
from nvembed_deploy.export.__main__ import main
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from tests import factories
from tests.model.test_adapter import write_adapter


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


@pytest.fixture
def artifact(tmp_path: Path, tiny_artifact: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "model"))


def test_an_artifact_that_holds_the_checkpoint_is_not_overwritten(
    tiny_checkpoint: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, artifact / "src" / "checkpoint")
    assert main([str(checkpoint), str(artifact), "--overwrite"]) == 2
    assert (
        f"the checkpoint {checkpoint} lies there, and would be removed" in capsys.readouterr().err
    )
    assert (checkpoint / "config.json").exists()
    assert open_artifact(artifact, "full")


@pytest.mark.parametrize("part", ["base", "adapter", "pooler", "tokenizer"])
def test_an_artifact_that_holds_a_part_of_the_checkpoint_is_not_overwritten(
    tmp_path: Path, tiny_base: Path, tiny_pooler: Path, artifact: Path, part: str
) -> None:
    write_adapter(tiny_base, tmp_path / "lora")
    parts = Parts(tiny_base, tmp_path / "lora", tiny_pooler, pooler_spec=factories.TINY.pooler)
    checkpoint = tmp_path / "checkpoint"
    assemble_checkpoint(parts, checkpoint, copy_base=True)
    names = {"pooler": "pooler.safetensors", "tokenizer": "tokenizer.json"}
    name = names.get(part, part)
    (checkpoint / name).rename(artifact / f"my-{name}")
    (checkpoint / name).symlink_to(artifact / f"my-{name}")
    planned = plan_export(checkpoint, ExportRecipe())
    before = sorted(artifact.rglob("*"))
    with pytest.raises(ArtifactError, match="lies there, and would be removed"):
        run_export(planned, artifact, overwrite=True)
    assert sorted(artifact.rglob("*")) == before


@pytest.mark.parametrize("key", ["calibration", "ranges", "cache"])
def test_texts_ranges_and_cache_may_not_lie_in_the_artifact(
    tiny_checkpoint: Path, artifact: Path, key: str
) -> None:
    planned = plan_export(tiny_checkpoint, ExportRecipe())
    planned = replace(planned, recipe=replace(planned.recipe, **{key: str(artifact / "it")}))
    with pytest.raises(ArtifactError, match=f"the {key} {artifact / 'it'} lies there"):
        run_export(planned, artifact, overwrite=True)
    with pytest.raises(ArtifactError, match=f"the {key} .* lies there"):
        run_export(planned, artifact.with_name("model") / "..//model", overwrite=True)


def test_files_for_the_engine_may_not_lie_in_the_artifact(
    tiny_checkpoint: Path, artifact: Path
) -> None:
    texts = artifact / "texts.jsonl"
    texts.write_text('{"text": "a"}\n')
    values = {"engine": {"flavour": "tensorrt", "timing_cache": str(artifact / "timing")}}
    for changed, named in (({}, "timing_cache"), ({"profile_from": str(texts)}, "profile_from")):
        values["engine"] |= changed
        planned = plan_export(tiny_checkpoint, ExportRecipe())
        planned = replace(planned, recipe=load_recipe(None, values))
        with pytest.raises(ArtifactError, match=f"the {named} .* lies there"):
            run_export(planned, artifact, overwrite=True)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there alone")
def test_a_place_that_is_not_utf8_is_named_as_what_is_wrong(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = Path(os.fsdecode(bytes(tmp_path) + b"/a\xff"))
    with pytest.raises(ArtifactError, match=r"a\\udcff' is no UTF-8 path") as caught:
        run_export(plan_export(tiny_checkpoint, ExportRecipe()), out)
    assert "choose a folder" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_all_linears_that_no_block_divides_are_named_with_what_keeps_them(tmp_path: Path) -> None:
    backbone = replace(factories.TINY.backbone, intermediate_size=100)
    spec = replace(factories.TINY, backbone=backbone)
    checkpoint = factories.write_released(tmp_path / "odd", spec)
    recipe = load_recipe(None, {"precision": "int4-weight", "keep": ["pooler.*"]})
    with pytest.raises(RecipeError) as caught:
        plan_export(checkpoint, recipe)
    assert caught.value.problem == (
        "backbone.layers.*.mlp.down_proj has 100 inputs, which no block size from 16 to 128 divides"
    )
    words = shlex.split(re.sub(";.*", "", caught.value.fix.partition(": ")[2]))
    patterns = ["pooler.*", "backbone.layers.*.mlp.down_proj"]
    assert words == ["--keep", patterns[0], "--keep", patterns[1]]
    assert caught.value.fix.endswith(f"keep = {json.dumps(patterns)}")
    assert plan_export(checkpoint, replace(recipe, keep=tuple(patterns)))


def test_a_linear_of_an_odd_number_of_outputs_is_refused_in_4_bit(tmp_path: Path) -> None:
    pooler = replace(factories.TINY.pooler, num_latents=7, num_heads=1)
    checkpoint = factories.write_released(tmp_path / "odd", replace(factories.TINY, pooler=pooler))
    recipe = load_recipe(None, {"precision": "int4-weight", "keep": ["pooler.values"]})
    with pytest.raises(RecipeError, match=r"pooler\.scores has 7 outputs, an odd number"):
        plan_export(checkpoint, recipe)
    assert plan_export(checkpoint, replace(recipe, keep=("pooler.values", "pooler.scores")))


def test_texts_are_taken_as_the_recipe_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = {"precision": "fp32", "max_tokens": 20, "prompts": {"query": "find:\n"}}
    run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), tmp_path / "out")
    with load_encoder(tmp_path / "out", device="cpu") as encoder:
        assert encoder.max_seq_length == 20
        assert encoder.prompts == {"query": "find:\n"}
        row = encoder.encode_query("the cat")
        np.testing.assert_array_equal(row, encoder.encode("the cat", prompt="find:\n"))


def test_more_tokens_than_positions_are_refused(tiny_checkpoint: Path) -> None:
    most = factories.TINY.backbone.max_positions
    recipe = load_recipe(None, {"max_tokens": most + 1})
    with pytest.raises(RecipeError, match=f"the decoder has {most} positions"):
        plan_export(tiny_checkpoint, recipe)


def test_a_calibrations_instruction_may_be_longer_than_texts_are(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Texts are cut when they are embedded; what is calibrated on has a limit of its own."""
    values = {"precision": "int8", "max_tokens": 20, "calibration_texts": 4}
    run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), tmp_path / "out")
    assert open_artifact(tmp_path / "out").manifest.spec.text.max_tokens == 20


def test_a_prompt_that_leaves_no_room_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = {"max_tokens": 20, "prompts": {"query": "find " * 10}}
    with pytest.raises(RecipeError, match=r"prompt 'query' has .* texts are cut after 20"):
        run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
