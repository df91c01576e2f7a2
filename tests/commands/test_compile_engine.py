"""Tests of compile_engine.py and engine_add.py: engines for artifacts that exist."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.export.engine_add import graph_facts
from nvembed_deploy.spec import Precision
from nvembed_deploy.tensorrt_api import gpu_target


def compiled(artifact: Path, *words: str) -> int:
    return main(["compile", str(artifact), "--engine", "tensorrt-rtx", *words])


def test_an_engine_joins_those_that_are_there(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(rtx_artifact)
    assert compiled(rtx_artifact, "--target", "sm120") == 0
    assert "sm120.plan: compiled in" in capsys.readouterr().out
    manifest = open_artifact(rtx_artifact, "full").manifest
    assert len(manifest.engines) == len(before.engines) + 1
    assert (manifest.spec, manifest.parity) == (before.spec, before.parity)
    assert {*manifest.files} - {*before.files} == {*manifest.engines} - {*before.engines}


def test_what_is_there_is_not_compiled_again_unless_asked(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    assert "there already" in capsys.readouterr().out
    assert compiled(rtx_artifact, "--target", "sm89", "--overwrite", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["compiled"]
    assert said["targets"] == ["sm89"]
    assert len(read_manifest(rtx_artifact).engines) == 1


def test_an_engine_that_says_another_version_is_compiled_anew(rtx_artifact: Path) -> None:
    (record,) = read_manifest(rtx_artifact).engines.values()
    path = rtx_artifact / "manifest.json"
    path.write_text(path.read_text().replace(f'"{record.version}"', '"1.0.0"'))
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    (now,) = read_manifest(rtx_artifact).engines.values()
    assert now.version == record.version


def test_what_a_killed_compiler_left_is_removed(rtx_artifact: Path) -> None:
    left = rtx_artifact / "engines" / ".partial-1.plan"
    left.write_bytes(b"half")
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    assert not left.exists()


def test_an_artifact_that_cannot_be_written_says_so(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rtx_artifact / "engines" / ".lock").unlink(missing_ok=True)
    (rtx_artifact / "engines" / ".lock").mkdir()  # as root, permissions would not stop us
    assert compiled(rtx_artifact, "--target", "sm86") == 2
    assert "a copy of the artifact" in capsys.readouterr().err


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has a GPU")
def test_tensorrt_without_a_gpu_says_where_to_run(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(tiny_artifact), "--engine", "tensorrt"]) == 3
    assert "run this on the GPU host" in capsys.readouterr().err
    assert not os.path.lexists(tiny_artifact / "engines")


def test_options_that_rtx_does_not_know_are_refused(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiled(rtx_artifact, "--strip-weights") == 2
    assert "strip_weights is not for TensorRT for RTX" in capsys.readouterr().err


def test_the_manifest_says_what_decides_a_build(rtx_artifact: Path) -> None:
    facts = graph_facts(read_manifest(rtx_artifact))
    assert (facts.precision, facts.opset, facts.head_width) == (Precision.FP16, 23, 64)
    assert facts.code is None
