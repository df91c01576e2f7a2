"""Tests of nvembed_deploy/parity/basis.py: a reference and a suite are known by what they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nvembed_deploy.artifact import read_manifest, update_parity
from nvembed_deploy.parity.basis import basis_of, quantized_note, reference_facts
from nvembed_deploy.parity.suite import LocalTask, read_suite
from tests.parity.small import write_suite


@pytest.fixture
def tasks(tmp_path: Path) -> list[LocalTask]:
    return read_suite(write_suite(tmp_path / "suite", ("retrieval", "sts")))


def test_an_artifact_is_known_by_its_files_not_by_its_place_or_its_verdict(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(tiny_artifact, tmp_path / tiny_artifact.name)
    update_parity(copied, {"passed": True})
    found = reference_facts(copied)
    assert found == reference_facts(tiny_artifact)
    assert found["kind"] == "artifact"
    record = read_manifest(tiny_artifact).files["model.onnx"]
    assert found["sha256"]["model.onnx"] == record.sha256


def test_a_checkpoint_is_known_as_the_artifacts_of_it_say(
    tiny_artifact: Path, tiny_assembled: Path
) -> None:
    found = reference_facts(tiny_assembled)
    assert found["kind"] == "checkpoint"
    assert found["sha256"] == read_manifest(tiny_artifact).source["sha256"]


def test_a_suite_is_known_by_its_files(
    tiny_assembled: Path, tasks: list[LocalTask], tmp_path: Path
) -> None:
    again = read_suite(write_suite(tmp_path / "copy", ("retrieval", "sts")))
    first, second = (basis_of(tiny_assembled, "mine", t, {}).suite for t in (tasks, again))
    assert first == second
    assert basis_of(tiny_assembled, "mine", tasks[:1], {}).suite["sha256"] != first["sha256"]
    assert basis_of(tiny_assembled, "", [], {"STS12": "f00"}).suite == {"mteb": {"STS12": "f00"}}


@pytest.mark.parametrize("name", ["task.json", "corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_change_of_any_file_of_a_task_shows(tmp_path: Path, name: str) -> None:
    suite = write_suite(tmp_path / "suite", ("retrieval",))
    before = read_suite(suite)[0].sha256
    with (suite / "small_retrieval" / name).open("a") as file:
        file.write("\n")
    assert read_suite(suite)[0].sha256 != before


@pytest.mark.parametrize(
    ("linears", "is_said"), [({"fp16": 15}, False), ({"fp8": 14, "fp16": 1}, True)]
)
def test_a_quantised_reference_is_said(
    tiny_artifact: Path, tmp_path: Path, linears: dict[str, int], is_said: bool
) -> None:
    copied = shutil.copytree(tiny_artifact, tmp_path / "copied")
    path = copied / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "linears": linears}))
    assert bool(basis_of(copied, "", [], {}).notes) is is_said
    assert ("14 fp8, 1 fp16" in quantized_note(copied)) is is_said
