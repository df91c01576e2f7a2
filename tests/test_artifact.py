"""Tests of artifact.py, manifest.py and staging.py: an artifact folder cannot lie."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nvembed_deploy.artifact import (
    LAYOUT,
    FileRecord,
    Manifest,
    WeightsSize,
    add_file_record,
    open_artifact,
    read_manifest,
    staged_artifact,
    update_parity,
    write_manifest,
)
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.spec import ModelSpec, PoolerForm, Precision

CONTENT = {
    LAYOUT.graph: b"graph",
    LAYOUT.weights: b"weights" * 100,
    LAYOUT.tokenizer: b"{}",
    "engines/sm90.plan": b"plan",
}


def make_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "spec": ModelSpec(prompts={"query": "Q: "}),
        "precision": Precision.FP16,
        "opset": 23,
        "pooler_form": PoolerForm.FOLDED,
        "linears": {"fp16": 226},
        "weights": WeightsSize(num_parameters=350, bytes=700),
        "recipe": {"precision": "fp16"},
        "source": {"name": "toy", "config.json": "ab" * 32},
        "tools": {"onnx": "1.23"},
        "created": "2026-11-23T12:00:00+00:00",
    }
    return Manifest(**(values | changes))


def fill(folder: Path) -> Manifest:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return write_manifest(folder, make_manifest())


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    with staged_artifact(tmp_path / "artifact") as stage:
        fill(stage)
    return tmp_path / "artifact"


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / LAYOUT.manifest
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v != "DROP"}))


def test_a_staged_artifact_opens_with_the_manifest_it_was_given(artifact_dir: Path) -> None:
    artifact = open_artifact(artifact_dir, verify="full")
    assert artifact.manifest.spec == ModelSpec(prompts={"query": "Q: "})
    assert artifact.manifest.precision is Precision.FP16
    assert set(artifact.manifest.files) == set(CONTENT)
    assert artifact.weights.read_bytes() == CONTENT[LAYOUT.weights]
    assert sorted(p.name for p in artifact_dir.parent.iterdir()) == ["artifact"]


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_a_flipped_byte_is_refused_with_the_file_and_both_hashes(
    artifact_dir: Path, name: str
) -> None:
    expected = read_manifest(artifact_dir).files[name].sha256
    content = bytearray(CONTENT[name])
    content[-1] ^= 1
    (artifact_dir / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} was changed: got sha256 .*{expected}"):
        open_artifact(artifact_dir, verify="full")


def test_fast_verification_reads_all_but_the_weights(artifact_dir: Path) -> None:
    seen: list[str] = []
    open_artifact(artifact_dir, progress=lambda name, _done, _total: seen.append(name))
    assert LAYOUT.graph in seen
    assert LAYOUT.weights not in seen
    open_artifact(artifact_dir, "full", progress=lambda name, _done, _total: seen.append(name))
    assert LAYOUT.weights in seen


@pytest.mark.parametrize("size", [699, 701])
def test_weights_of_another_size_are_refused_even_by_fast_verification(
    artifact_dir: Path, size: int
) -> None:
    (artifact_dir / LAYOUT.weights).write_bytes((CONTENT[LAYOUT.weights] + b"more")[:size])
    with pytest.raises(ArtifactError, match=f"got {size} bytes, expected 700"):
        open_artifact(artifact_dir)


def test_a_missing_file_is_named(artifact_dir: Path) -> None:
    (artifact_dir / LAYOUT.tokenizer).unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        open_artifact(artifact_dir)


def test_a_link_out_of_the_folder_is_refused(artifact_dir: Path, tmp_path: Path) -> None:
    weights = artifact_dir / LAYOUT.weights
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="outside the artifact"):
        open_artifact(artifact_dir)


def test_a_listed_name_cannot_lead_out_of_the_folder(artifact_dir: Path) -> None:
    files = json.loads((artifact_dir / LAYOUT.manifest).read_text())["files"]
    edit_manifest(artifact_dir, files=files | {"../x": {"bytes": 1, "sha256": "0"}})
    with pytest.raises(ArtifactError, match=r"files has the name '\.\./x', expected the relative"):
        open_artifact(artifact_dir)


def test_a_graph_that_is_not_listed_is_refused(artifact_dir: Path) -> None:
    files = json.loads((artifact_dir / LAYOUT.manifest).read_text())["files"]
    del files[LAYOUT.graph]
    edit_manifest(artifact_dir, files=files)
    with pytest.raises(ArtifactError, match=r"does not list \['model.onnx'\]"):
        open_artifact(artifact_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "got schema_version 2, expected 1"),
        ({"colour": "red"}, r"missing keys \[\], unknown keys \['colour'\]"),
        ({"opset": "DROP"}, r"missing keys \['opset'\]"),
        ({"opset": "23"}, "opset is '23', expected a whole number"),
        ({"precision": "fp7"}, "'fp7' is not a valid Precision"),
        ({"weights": {"bytes": 3}}, "num_parameters"),
        ({"spec": {"colour": 1}}, "unknown keys"),
        ({"files": {"model.onnx": 3}}, r"files\['model.onnx'\] is 3, expected an object"),
        ({"parity": {"cosine": 1.0}}, "boolean 'passed'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_manifest_that_is_not_understood_is_refused(
    artifact_dir: Path, changes: dict[str, object], message: str
) -> None:
    edit_manifest(artifact_dir, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_artifact(artifact_dir)
    assert caught.value.fix


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_manifest_that_is_no_json_object_is_refused(artifact_dir: Path, text: str) -> None:
    (artifact_dir / LAYOUT.manifest).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_artifact(artifact_dir)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact"):
        open_artifact(tmp_path / "nothing")


def test_the_writer_may_give_the_hash_of_the_weights(tmp_path: Path) -> None:
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    manifest = add_file_record(tmp_path, make_manifest(), LAYOUT.weights, sha256="ab" * 32)
    written = write_manifest(tmp_path, manifest)
    assert written.files[LAYOUT.weights] == FileRecord(bytes=700, sha256="ab" * 32)
    assert written == read_manifest(tmp_path)


def test_a_parity_verdict_changes_the_manifest_alone(artifact_dir: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in artifact_dir.rglob("*") if p.is_file()}
    assert not open_artifact(artifact_dir).manifest.has_passed_parity
    update_parity(artifact_dir, {"passed": True, "min_cosine": 0.9999})
    assert open_artifact(artifact_dir, "full").manifest.has_passed_parity
    after = {p: p.stat().st_mtime_ns for p in artifact_dir.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == {LAYOUT.manifest}


def test_a_verdict_without_passed_is_refused_and_nothing_changes(artifact_dir: Path) -> None:
    before = (artifact_dir / LAYOUT.manifest).read_bytes()
    with pytest.raises(ArtifactError, match="boolean 'passed'"):
        update_parity(artifact_dir, {"min_cosine": 0.5})
    assert (artifact_dir / LAYOUT.manifest).read_bytes() == before


def test_an_existing_folder_is_refused_unless_asked(artifact_dir: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="exists already"),
        staged_artifact(artifact_dir),
    ):
        pass
    with staged_artifact(artifact_dir, overwrite=True) as stage:
        fill(stage)
        (stage / "new").write_text("new")
    assert (artifact_dir / "new").exists()
    assert [p.name for p in artifact_dir.parent.iterdir()] == ["artifact"]


def test_overwrite_never_takes_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(ArtifactError, match="something else made it"),
        staged_artifact(tmp_path / "home", overwrite=True),
    ):
        pass
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_an_error_leaves_the_old_artifact_and_nothing_else(artifact_dir: Path) -> None:
    with pytest.raises(RuntimeError), staged_artifact(artifact_dir, overwrite=True) as stage:
        (stage / LAYOUT.graph).write_bytes(b"half")
        raise RuntimeError
    assert open_artifact(artifact_dir, "full")
    assert [p.name for p in artifact_dir.parent.iterdir()] == ["artifact"]


def test_a_folder_without_manifest_never_becomes_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact"), staged_artifact(tmp_path / "a") as s:
        (s / LAYOUT.graph).write_bytes(b"graph")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_is_said_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="does not exist") as caught,
        staged_artifact(tmp_path / "no" / "artifact"),
    ):
        pass
    assert "mkdir -p" in caught.value.fix


def test_a_second_run_for_the_same_folder_does_not_disturb_the_first(tmp_path: Path) -> None:
    with staged_artifact(tmp_path / "a") as stage:
        with pytest.raises(ArtifactError, match="no other run"), staged_artifact(tmp_path / "a"):
            pass
        fill(stage)
    assert open_artifact(tmp_path / "a", "full")


# The child kills itself at the Nth call of the functions that change the disk in `staging`.
KILLED_CHILD = """
import os, pathlib, shutil, signal, sys
sys.path[:0] = [{repo!r}, {tests!r}]
from test_artifact import fill
from nvembed_deploy import staging
from nvembed_deploy.artifact import staged_artifact

steps = 0
def dying(function):
    def step(*args, **kwargs):
        global steps
        steps += 1
        if steps == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return step

staging.sync = dying(staging.sync)
staging.shutil.rmtree = dying(shutil.rmtree)
pathlib.Path.rename = dying(pathlib.Path.rename)
with staged_artifact(pathlib.Path({out!r}), overwrite=True) as stage:
    (stage / "generation").write_text("new")
    fill(stage)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwritten"])
def test_killed_at_any_step_nothing_half_written_looks_finished(
    tmp_path: Path, exists: bool
) -> None:
    tests = Path(__file__).parent
    out, step, code = tmp_path / "artifact", 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        step += 1
        if exists and not out.exists():
            with staged_artifact(out) as stage:
                fill(stage)
        script = textwrap.dedent(KILLED_CHILD).format(
            repo=str(tests.parent), tests=str(tests), step=step, out=str(out)
        )
        code = subprocess.run([sys.executable, "-c", script], check=False).returncode
        if out.exists():
            open_artifact(out, "full")
        for visible in tmp_path.iterdir():
            assert visible.name == "artifact" or visible.name.startswith(".artifact.")
        if exists:
            with pytest.raises(ArtifactError, match="exists already"), staged_artifact(out):
                pass  # starting is enough: it repairs
            assert open_artifact(out, "full"), "the old artifact is lost"
        else:
            with staged_artifact(out, overwrite=True) as stage:
                fill(stage)
        assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
        if not exists:
            shutil.rmtree(out)
    assert code == 0
    assert step > 8, "the child died too rarely to prove anything"


def test_a_folder_left_by_a_dead_run_is_removed_even_with_our_own_number(tmp_path: Path) -> None:
    (tmp_path / f".a.partial-{os.getpid()}").mkdir()
    (tmp_path / f".a.partial-{os.getpid()}" / "junk").write_text("junk")
    with staged_artifact(tmp_path / "a") as stage:
        fill(stage)
    assert not (tmp_path / "a" / "junk").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
