"""Tests of nvembed_deploy/parity/trace.py: the first layer that differs is the wrong one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvembed_deploy.errors import InputError, MissingPackageError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.parity.trace import check_traceable, layer_states, trace
from nvembed_deploy.spec import Precision
from tests import factories


def faulty(folder: Path, name: str, pooler: Path) -> Path:
    """A checkpoint whose weights of one name are doubled."""
    base = factories.write_base(folder / "base")
    (file,) = [p for p in base.glob("*.safetensors") if f"model.{name}" in load_file(p)]
    tensors = load_file(file)
    tensors[f"model.{name}"] = 2 * tensors[f"model.{name}"]
    save_file(tensors, file, {"format": "pt"})
    parts = Parts(base, pooler=pooler, pooler_spec=factories.TINY.pooler)
    assemble_checkpoint(parts, folder / "faulty")
    return folder / "faulty"


def test_an_artifact_follows_its_checkpoint(tiny_artifact: Path, tiny_assembled: Path) -> None:
    found = trace(tiny_artifact, tiny_assembled, "fp32")
    assert len(found.drift) == factories.TINY.backbone.num_layers
    assert max(found.drift) < 1e-5
    assert found.first is None
    assert "tolerance" not in "".join(found.lines())


@pytest.mark.parametrize("layer", range(3))
def test_a_planted_fault_is_found_in_its_layer(
    tiny_artifact: Path, tiny_pooler: Path, tmp_path: Path, layer: int
) -> None:
    other = faulty(tmp_path, f"layers.{layer}.mlp.down_proj.weight", tiny_pooler)
    found = trace(tiny_artifact, other, "fp32")
    assert found.first == layer
    assert found.lines()[layer].endswith("<- the first beyond tolerance")
    assert all(drift < 1e-5 for drift in found.drift[:layer])


def test_a_rotated_graph_can_be_traced(tiny_assembled: Path, tmp_path: Path) -> None:
    recipe = load_recipe(None, {"precision": "int8", "rounding": "nearest"})
    run_export(plan_export(tiny_assembled, recipe), tmp_path / "int8")
    states, plain = layer_states(tmp_path / "int8"), layer_states(tiny_assembled)
    assert np.abs(states[0] - plain[0]).max() > 0.1 * np.abs(plain[0]).max()
    assert trace(tmp_path / "int8", tiny_assembled, "int8").first is None


def test_two_artifacts_compare_and_leave_nothing_behind(
    tiny_artifact: Path, tiny_assembled: Path, tmp_path: Path
) -> None:
    run_export(plan_export(tiny_assembled, ExportRecipe(precision=Precision.FP16)), tmp_path / "a")
    found = trace(tmp_path / "a", tiny_artifact, "fp16")
    assert 1e-6 < max(found.drift) < 2e-2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_depths_are_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    base = factories.write_base(tmp_path / "base", factories.with_layers(factories.TINY, 2))
    assemble_checkpoint(Parts(base, pooler_spec=factories.TINY.pooler), tmp_path / "short")
    with pytest.raises(InputError, match=r"3 layers, .*short 2"):
        trace(tiny_artifact, tmp_path / "short", "fp32")


def test_a_bf16_artifact_is_refused_before_anything_is_computed(
    tiny_assembled: Path, tmp_path: Path
) -> None:
    run_export(plan_export(tiny_assembled, ExportRecipe(precision=Precision.BF16)), tmp_path / "a")
    for pair in ((tmp_path / "a", tiny_assembled), (tiny_assembled, tmp_path / "a")):
        with pytest.raises(InputError, match="a is bf16: --trace computes an artifact on the proc"):
            trace(*pair, "bf16")


@pytest.mark.parametrize(
    ("package", "extra"), [("onnx", "parity"), ("onnxruntime", "onnx"), ("torch", "torch")]
)
def test_a_package_that_a_trace_needs_is_named(
    tiny_artifact: Path,
    tiny_assembled: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setattr("nvembed_deploy.parity.trace.find_spec", lambda n: n != package or None)
    with pytest.raises(MissingPackageError, match=rf"needs {package}, .*\n.*\[{extra}\]"):
        check_traceable(tiny_assembled if package == "torch" else tiny_artifact)
