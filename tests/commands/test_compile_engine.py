"""Tests of compile_engine.py and engine_add.py: engines for artifacts that exist."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.engine_record import EngineFacts, EngineRecord, Flavour, Profile, Shape
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export.engine_add import add_engine, graph_facts, is_as_asked
from nvembed_deploy.export.engine_options import EngineOptions
from nvembed_deploy.export.formats import Code
from nvembed_deploy.spec import Precision
from nvembed_deploy.tensorrt_api import gpu_target
from tests.full_disk import files_up_to


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


def test_profiles_that_were_asked_for_are_compared_with_those_that_are_there(
    rtx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(*words: str) -> str:
        assert compiled(rtx_artifact, "--target", "sm89", *words) == 0
        return capsys.readouterr().out

    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "a few words"}) + "\n")
    assert "compiled in" in says("--profile-from", str(texts))
    assert "there already" in says("--profile-from", str(texts))
    (record,) = read_manifest(rtx_artifact).engines.values()
    assert "there already" in says(), "profiles that nobody asks for are as good as any"
    texts.write_text(json.dumps({"text": "many words " * 90}) + "\n")
    assert "compiled in" in says("--profile-from", str(texts))
    (now,) = open_artifact(rtx_artifact, "full").manifest.engines.values()
    assert now.profiles != record.profiles


PROFILE = Profile("all", Shape(1, 2), Shape(8, 64), Shape(16, 512))
LONGER = Profile("all", Shape(1, 2), Shape(8, 64), Shape(16, 4096))


@pytest.mark.parametrize(
    ("there", "asked", "is_it"),
    [
        ({}, {}, True),
        ({}, {"version_compatible": True}, False),
        ({}, {"strip_weights": True}, False),
        ({"version_compatible": True}, {"version_compatible": True}, True),
        ({"version_compatible": True}, {}, True),
        ({"version_compatible": True, "strip_weights": True}, {"strip_weights": True}, False),
        (
            {"hardware_compatible": "ampere_plus"},
            {"hardware_compatible": "same_compute_capability"},
            False,
        ),
        ({}, {"profiles": (PROFILE,)}, True),
        ({}, {"profiles": (LONGER,)}, False),
        ({"strip_weights": True}, {"profiles": (LONGER,)}, False),
    ],
)
def test_an_engine_with_other_options_is_not_the_one_asked_for(
    there: dict[str, Any], asked: dict[str, Any], is_it: bool
) -> None:
    """Nothing asked, as a runtime does, means whatever is there."""
    facts = EngineFacts(0, {}, 0)
    record = EngineRecord(
        Flavour.TENSORRT, "11.4", ("sm90",), (PROFILE,), facts, seconds=1.0, options=there
    )
    options = EngineOptions(Flavour.TENSORRT, **asked)
    assert is_as_asked(record, options, options.profiles or (LONGER,)) is is_it


def test_an_engine_for_the_same_gpus_in_another_order_is_the_one_asked_for(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name has the order that was given when names were not sorted; damaged, it is mended."""
    unsorted = EngineOptions(Flavour.RTX, ("sm120", "sm89"))
    name, _, _ = add_engine(rtx_artifact, unsorted)
    assert name.endswith("sm120-sm89.plan")
    listed = set(read_manifest(rtx_artifact).engines)
    assert compiled(rtx_artifact, "--target", "sm89,sm120") == 0
    assert "there already" in capsys.readouterr().out
    os.truncate(rtx_artifact / name, 1000)
    assert compiled(rtx_artifact, "--target", "sm120,sm89") == 0
    open_artifact(rtx_artifact, "full")
    assert set(read_manifest(rtx_artifact).engines) == listed


def test_what_shaped_an_engine_that_is_there_is_told(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `compile --engine tensorrt --strip-weights` writes it, which needs a GPU."""
    path = rtx_artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    (record,) = manifest["engines"].values()
    record["options"] = {"strip_weights": True}
    path.write_text(json.dumps(manifest))
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    assert "there already with strip_weights (--overwrite)" in capsys.readouterr().out


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


def test_an_engine_that_is_there_needs_no_leave_to_write(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rtx_artifact / "engines" / ".lock").unlink(missing_ok=True)
    (rtx_artifact / "engines" / ".lock").mkdir()
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    assert "there already" in capsys.readouterr().out
    assert compiled(rtx_artifact, "--target", "sm89", "--overwrite") == 2
    assert "a copy of the artifact" in capsys.readouterr().err


def test_engines_that_lie_elsewhere_are_not_written_to(
    rtx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rtx_artifact / "engines").rename(tmp_path / "elsewhere")
    (rtx_artifact / "engines").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    assert compiled(rtx_artifact, "--target", "sm86") == 2
    said = capsys.readouterr().err
    assert f"leads to {tmp_path / 'elsewhere'}, outside the artifact" in said
    assert sorted((tmp_path / "elsewhere").iterdir()) == before
    open_artifact(rtx_artifact)


def test_a_full_disk_leaves_the_engine_that_was_there(
    rtx_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_up_to(1 << 20):
        assert compiled(rtx_artifact, "--target", "sm89", "--overwrite") == 2
    said = capsys.readouterr()
    assert "cannot be written: [Errno 27] File too large" in said.err
    assert "fix: free space" in said.err
    assert "compiled in" not in said.out
    ((name, _),) = open_artifact(rtx_artifact, "full").manifest.engines.items()
    assert plans(rtx_artifact) == [name]


@pytest.mark.parametrize("target", ["sm89", "sm86"], ids=["replaced", "new"])
def test_an_engine_that_cannot_be_recorded_leaves_what_was_there(
    rtx_artifact: Path, tmp_path: Path, target: str
) -> None:
    (rtx_artifact / f".manifest.json.{os.getpid()}").mkdir()  # where the new manifest is written
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "a few words"}) + "\n")  # another plan than that there
    assert compiled(rtx_artifact, "--target", target, "--profile-from", str(texts)) == 2
    ((name, _),) = open_artifact(rtx_artifact, "full").manifest.engines.items()
    assert plans(rtx_artifact) == [name]


def test_where_files_have_one_name_an_engine_that_cannot_be_recorded_is_removed(
    rtx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (rtx_artifact / f".manifest.json.{os.getpid()}").mkdir()
    assert compiled(rtx_artifact, "--target", "sm89", "--overwrite") == 2
    assert plans(rtx_artifact) == []
    assert open_artifact(rtx_artifact).manifest.engines == {}


def test_plans_of_ours_that_the_manifest_does_not_list_are_removed(rtx_artifact: Path) -> None:
    """They are of a compiler that was killed before it recorded them, and as large as the model."""
    for name in ("tensorrt-rtx-1.0-sm89.plan", "tensorrt-11.4-sm90.plan", "mine.plan"):
        (rtx_artifact / "engines" / name).write_bytes(b"plan")
    (listed,) = read_manifest(rtx_artifact).engines
    assert compiled(rtx_artifact, "--target", "sm89") == 0
    assert plans(rtx_artifact) == ["engines/mine.plan", listed]


@pytest.mark.parametrize("holds_engines", [True, False])
def test_an_artifact_that_is_replaced_meanwhile_gets_no_engine_of_the_old_one(
    rtx_artifact: Path, tmp_path: Path, holds_engines: bool
) -> None:
    """As by `export --overwrite`, which waits for nobody."""
    new, path = Path(shutil.copytree(rtx_artifact, tmp_path / "new")), rtx_artifact
    if not holds_engines:
        shutil.rmtree(new / "engines")
        manifest = json.loads((new / "manifest.json").read_text())
        (name,) = manifest["engines"]
        del manifest["files"][name], manifest["engines"][name]
        (new / "manifest.json").write_text(json.dumps(manifest))

    def replace_it(_: int) -> None:
        if new.exists():
            shutil.rmtree(path)
            new.rename(path)

    options = EngineOptions(Flavour.RTX, ("sm89",))
    with pytest.raises(ArtifactError, match="was replaced or removed while"):
        add_engine(path, options, overwrite=True, advance=replace_it)
    assert plans(path) == list(open_artifact(path, "full").manifest.engines)


def plans(artifact: Path) -> list[str]:
    found = (artifact / "engines").glob("*.plan")
    return sorted(plan.relative_to(artifact).as_posix() for plan in found)


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


def test_a_graph_of_4_and_8_bits_is_built_as_one_of_4(rtx_artifact: Path) -> None:
    manifest = read_manifest(rtx_artifact)
    recipe = {**manifest.recipe, "precision": "int4-weight"}
    mixed = replace(manifest, recipe=recipe, linears={"int8": 2, "int4": 19})
    assert graph_facts(mixed).code is Code.INT4
