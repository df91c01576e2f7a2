"""Tests of nvembed_deploy/export/calibration_record.py: ranges are kept, and used again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.artifact import LAYOUT, open_artifact, read_manifest
from nvembed_deploy.errors import ArtifactError, RecipeError
from nvembed_deploy.export.__main__ import main
from nvembed_deploy.export.calibration_record import CalibrationRecord
from nvembed_deploy.export.graph_linear import first_of
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.tensorfile import open_tensors
from tests import factories


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "artifact"
    assert main([str(tiny_checkpoint), str(out), "--precision", "int8"]) == 0
    return out


def scales(artifact: Path) -> dict[str, float]:
    tensors = open_tensors(artifact / LAYOUT.weights)
    raw = (artifact / LAYOUT.weights).read_bytes()
    return {
        name: float(np.frombuffer(raw, np.float16, 1, entry.offset)[0])
        for name, entry in tensors.items()
        if name.endswith(".input_scale")
    }


def test_an_artifact_says_what_it_was_calibrated_on_and_what_was_found(calibrated: Path) -> None:
    record = CalibrationRecord.read(calibrated)
    assert LAYOUT.calibration in open_artifact(calibrated, "full").manifest.files
    assert (record.texts.texts, record.texts.seed) == (256 + 64, 0)  # and first words
    assert record.texts.tokens > 4000
    assert record.checkpoint == read_manifest(calibrated).source["sha256"]
    assert len(record.ranges) == 7 * factories.TINY.backbone.num_layers + 4
    stored = scales(calibrated)
    assert stored.keys() == {
        f"{name}.input_scale"
        for name in record.ranges
        if first_of(name) == name and name not in record.per_token
    }
    assert tuple(read_manifest(calibrated).recipe["per_token"]) == record.per_token
    for name, scale in stored.items():
        found = record.ranges[name.removesuffix(".input_scale")]
        assert found.scale == scale
        assert 0 < scale <= np.float16(found.largest / 127)


def test_ranges_are_used_again_without_texts_to_the_bit(
    tiny_checkpoint: Path, calibrated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    argv = [str(tiny_checkpoint), str(out), "--precision", "int8", "--ranges", str(calibrated)]
    assert main(argv) == 0
    assert scales(out) == scales(calibrated)
    assert read_manifest(out).recipe["rounding"] == "nearest"
    assert not (out / LAYOUT.calibration).exists()


def test_the_same_export_twice_has_the_same_bytes(
    tiny_checkpoint: Path, calibrated: Path, tmp_path: Path
) -> None:
    assert main([str(tiny_checkpoint), str(tmp_path / "b"), "--precision", "int8"]) == 0
    for name in (LAYOUT.weights, LAYOUT.calibration):
        first, second = (read_manifest(p).files[name] for p in (calibrated, tmp_path / "b"))
        assert first == second


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"checkpoint": {"config.json": "0"}}, "another checkpoint's: config.json"),
        ({"rotation": 5}, "rotation seed 0 here, seed 5 there"),
        ({"ranges": {}}, "linears have no such range"),
    ],
)
def test_ranges_of_another_model_are_refused(
    calibrated: Path, change: dict[str, object], named: str
) -> None:
    record = CalibrationRecord.read(calibrated)
    static = [name.removesuffix(".input_scale") for name in scales(calibrated)]
    record.check(record.checkpoint, record.rotation, static)
    with pytest.raises(RecipeError, match=named):
        replace(record, **change).check(record.checkpoint, record.rotation, static)


def test_a_range_per_token_is_not_one_for_all(calibrated: Path) -> None:
    record = CalibrationRecord.read(calibrated)
    first = next(name for name in record.ranges if name not in record.per_token)
    per_token = {**record.ranges, first: record.ranges[first]._replace(scale=None)}
    with pytest.raises(RecipeError, match=f"1 linears have no such range there, as {first}"):
        replace(record, ranges=per_token).check(record.checkpoint, record.rotation, [first])


def test_ranges_of_other_codes_or_of_features_rotated_otherwise_are_refused(tmp_path: Path) -> None:
    """int8-cpu rotates 32 features together, int8 128; fp8 has 448 steps where int8 has 127."""
    checkpoint = factories.write_released(tmp_path / "checkpoint", factories.FUSABLE)
    values = {"activations": "static", "rotate": True}
    recipe = load_recipe(None, {"precision": "int8", "calibration_texts": 4} | values)
    run_export(plan_export(checkpoint, recipe), tmp_path / "int8")
    again = values | {"ranges": str(tmp_path / "int8")}
    plan_export(checkpoint, load_recipe(None, {"precision": "int8"} | again))
    for precision in ("int8-cpu", "fp8"):
        with pytest.raises(RecipeError, match=f"int8 has other codes than {precision}"):
            plan_export(checkpoint, load_recipe(None, {"precision": precision} | again))


def test_ranges_from_before_a_file_was_named_are_used_again(calibrated: Path) -> None:
    record = CalibrationRecord.read(calibrated)
    now = {**record.checkpoint, "base/config.json": "1"}
    old = {name: h for name, h in record.checkpoint.items() if name != "tokenizer.json"}
    assert old != record.checkpoint
    replace(record, checkpoint=old).check(now, record.rotation, [])
    with pytest.raises(RecipeError, match=r"another checkpoint's: config\.json differs"):
        replace(record, checkpoint=old).check({**now, "config.json": "0"}, record.rotation, [])
    with pytest.raises(RecipeError, match=r"another checkpoint's: tokenizer\.json differs"):
        record.check({**now, "tokenizer.json": "0"}, record.rotation, [])


def test_ranges_that_are_not_those_of_the_manifest_are_refused(
    tiny_checkpoint: Path, calibrated: Path, tmp_path: Path
) -> None:
    artifact = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    recipe = load_recipe(None, {"precision": "int8", "ranges": str(artifact)})
    plan_export(tiny_checkpoint, recipe)
    path = artifact / LAYOUT.calibration
    path.write_text(path.read_text().replace('"scale": 0.0', '"scale": 0.1', 1))
    with pytest.raises(ArtifactError, match=r"calibration\.json was changed"):
        plan_export(tiny_checkpoint, recipe)


def test_an_artifact_that_was_not_calibrated_is_refused(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(tiny_checkpoint), str(tmp_path / "out"), "--precision", "int8"]
    assert main([*argv, "--ranges", str(tiny_artifact)]) == 2
    assert "it was not calibrated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ranges": 3}'])
def test_a_damaged_record_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / LAYOUT.calibration).write_text(text)
    with pytest.raises(ArtifactError, match=r"calibration\.json cannot be read"):
        CalibrationRecord.read(tmp_path)


def test_what_ranges_contradict_is_said_at_once(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    keys = {"precision": "int8", "ranges": "x", "rounding": "compensated", "calibration": "y"}
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    assert main([str(tiny_checkpoint), str(tmp_path / "out"), "--recipe", str(recipe)]) == 2
    problem = capsys.readouterr().err
    assert "ranges with calibration" in problem
    assert "ranges with rounding 'compensated'" in problem
