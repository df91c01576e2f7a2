"""Tests of nvembed_deploy/export/pipeline.py: every way to the weights gives the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvembed_deploy import load_encoder
from nvembed_deploy.artifact import hash_file, read_manifest
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.model.names import released_name
from nvembed_deploy.spec import Precision
from nvembed_deploy.tensorfile import open_tensors
from tests import factories
from tests.model.test_adapter import write_adapter

FP32 = ExportRecipe(precision=Precision.FP32)
TEXTS = ["the cat sat on the mat", "", "🦀 emoji", "then there was another one " * 20]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}],
    ids=["lora", "dora", "rslora", "dora-rslora"],
)
def test_an_adapter_is_in_the_artifact_as_in_the_checkpoint(
    tmp_path: Path, tiny_base: Path, tiny_pooler: Path, tiny_artifact: Path, options: Any
) -> None:
    write_adapter(tiny_base, tmp_path / "adapter", **options)
    parts = Parts(tiny_base, tmp_path / "adapter", tiny_pooler, pooler_spec=factories.TINY.pooler)
    assemble_checkpoint(parts, tmp_path / "checkpoint")
    run_export(plan_export(tmp_path / "checkpoint", FP32), tmp_path / "artifact")
    with (
        load_encoder(tmp_path / "artifact", "onnx") as graph,
        load_encoder(tmp_path / "checkpoint", "torch") as oracle,
        load_encoder(tiny_artifact, "onnx") as without,
    ):
        got, expected, plain = (encoder.encode(TEXTS) for encoder in (graph, oracle, without))
    assert np.abs(got - expected).max() <= 2e-6
    assert np.abs(got - plain).max() >= 0.01, "the adapter changes nothing: this proves nothing"


def test_the_manifest_says_where_the_artifact_comes_from(
    tmp_path: Path, tiny_base: Path, tiny_pooler: Path
) -> None:
    write_adapter(tiny_base, tmp_path / "adapter")
    parts = Parts(
        tiny_base, tmp_path / "adapter", tiny_pooler, pooler_spec=factories.TINY.pooler, name="mine"
    )
    assemble_checkpoint(parts, tmp_path / "checkpoint")
    run_export(plan_export(tmp_path / "checkpoint", FP32), tmp_path / "artifact")
    source = read_manifest(tmp_path / "artifact").source
    assert source["name"] == "mine"
    assert source["sha256"] == {
        "checkpoint.json": hash_file(tmp_path / "checkpoint" / "checkpoint.json"),
        "adapter_config.json": hash_file(
            tmp_path / "checkpoint" / "adapter" / "adapter_config.json"
        ),
        "adapter_model.safetensors": hash_file(
            tmp_path / "checkpoint" / "adapter" / "adapter_model.safetensors"
        ),
        "pooler.safetensors": hash_file(tmp_path / "checkpoint" / "pooler.safetensors"),
        "base/config.json": hash_file(tiny_base / "config.json"),
        "tokenizer.json": hash_file(tmp_path / "checkpoint" / "tokenizer.json"),
    }


def test_rounding_adds_no_parameters(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Scales, bases and second codes are how a model is stored, not more of it."""
    counts, sizes = [], []
    for values in ({"precision": "fp16"}, {"precision": "fp8", "calibration_texts": 8}):
        out = tmp_path / str(values["precision"])
        manifest = run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), out)
        counts.append(manifest.weights.num_parameters)
        sizes.append(len(open_tensors(out / "model.onnx_data")))
    assert counts[0] == counts[1]
    assert sizes[0] < sizes[1]


def test_texts_are_read_once_and_warned_of_once(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever sees them: a share to keep, ranges, rounding."""
    values = {"precision": "int8", "keep_share": 0.1, "calibration_texts": 2}
    run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), tmp_path / "int8")
    assert caplog.text.count("rounding fitted to so few") == 1


def test_a_damaged_tensor_stops_the_export_and_nothing_is_left(tmp_path: Path) -> None:
    checkpoint = factories.write_released(tmp_path / "checkpoint", num_shards=1)
    shard = checkpoint / "model-00001-of-00001.safetensors"
    key = released_name("backbone.layers.2.mlp.down_proj.weight")
    tensors = load_file(shard)
    tensors[key][3, 4] = np.inf
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"down_proj.*model-00001.*inf at \(3, 4\)"):
        run_export(plan_export(checkpoint, FP32), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize(
    ("precision", "codes"), [("int8", ("fp16", "int8")), ("int4-weight", ("int8", "int4"))]
)
def test_a_share_is_kept_in_finer_numbers_and_brings_the_vectors_nearer(
    tmp_path: Path,
    tiny_assembled: Path,
    tiny_artifact: Path,
    precision: str,
    codes: tuple[str, str],
) -> None:
    fine, coarse = codes
    with load_encoder(tiny_artifact, "onnx") as encoder:
        exact = encoder.encode(TEXTS)
    errors, linears = {}, {}
    for share in (0.0, 0.3):
        values = {"precision": precision, "rounding": "nearest", "keep_share": share}
        values["keep"] = ["pooler.values"]  # of the tiny pooler, which no block divides
        out = tmp_path / str(share)
        manifest = run_export(plan_export(tiny_assembled, load_recipe(None, values)), out)
        linears[share] = manifest.linears
        with load_encoder(out, "onnx") as encoder:
            errors[share] = 1 - float((encoder.encode(TEXTS) * exact).sum(1).mean())
    assert errors[0.3] < errors[0.0]
    kept = len(set(read_manifest(tmp_path / "0.3").recipe["keep"]) - {"pooler.values"})
    assert kept > 0
    moved = {fine: linears[0.0].get(fine, 0) + kept, coarse: linears[0.0][coarse] - kept}
    assert linears[0.3] == {**linears[0.0], **moved}
