"""The full-size engine benchmark, run here on a tiny artifact so that it is known to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import engine_full_size
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from tests.export.test_engine import SPEC
from tests.factories import write_released

pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")


def test_it_compiles_an_artifact_and_tells_time_memory_and_what_was_fused(tmp_path: Path, capsys):
    checkpoint = write_released(tmp_path / "checkpoint", SPEC)
    recipe = load_recipe(None, {"precision": "fp8", "rounding": "nearest"})
    run_export(plan_export(checkpoint, recipe), tmp_path / "artifact")
    out = tmp_path / "result.json"
    words = ["--artifact", str(tmp_path / "artifact"), "--target", "sm89", "--json", str(out)]
    assert engine_full_size.main([*words, "--workdir", str(tmp_path)]) == 0
    result = json.loads(out.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    assert result["seconds"] > 0
    assert result["child_peak_gib"] > 0.05
    assert result["facts"]["fused_attention"] == SPEC.backbone.num_layers * result["profiles"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("engine-")] == []
