"""Tests of nvembed_deploy/export/provenance.py: no file that shapes a vector goes unnamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import nvembed_deploy
from nvembed_deploy.artifact import hash_file
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.export.provenance import source_of, tool_versions
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from tests import factories
from tests.model.test_adapter import write_adapter


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_base: Path, tiny_pooler: Path) -> Path:
    """A checkpoint with an adapter, which a test may change."""
    write_adapter(tiny_base, tmp_path / "lora")
    parts = Parts(tiny_base, tmp_path / "lora", tiny_pooler, pooler_spec=factories.TINY.pooler)
    assemble_checkpoint(parts, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def hashes(folder: Path) -> dict[str, str]:
    found: dict[str, str] = source_of(open_checkpoint(folder))["sha256"]
    return found


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_adapters_scale_is_part_of_where_an_artifact_comes_from(checkpoint: Path) -> None:
    before = hashes(checkpoint)
    change(checkpoint / "adapter" / "adapter_config.json", lora_alpha=9)
    after = hashes(checkpoint)
    assert [n for n in before if before[n] != after[n]] == ["adapter_config.json"]


def test_parts_of_other_names_and_places_are_hashed_too(checkpoint: Path) -> None:
    before = hashes(checkpoint)
    (checkpoint / "pooler.safetensors").rename(checkpoint.with_name("mine.safetensors"))
    (checkpoint / "adapter").rename(checkpoint / "lora")
    change(checkpoint / "checkpoint.json", pooler="../mine.safetensors", adapter="lora")
    after = hashes(checkpoint)
    assert after["pooler.safetensors"] == hash_file(checkpoint.with_name("mine.safetensors"))
    assert before.keys() == after.keys()
    assert [n for n in before if before[n] != after[n]] == ["checkpoint.json"]


def test_a_pooler_that_is_not_used_is_not_named(checkpoint: Path) -> None:
    change(checkpoint / "checkpoint.json", pooler_spec={"pooling": "mean"}, adapter=None)
    assert (checkpoint / "pooler.safetensors").exists()
    assert list(hashes(checkpoint)) == ["checkpoint.json"]


def test_a_released_models_weights_are_not_read(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copied = shutil.copytree(tiny_checkpoint, tmp_path / "released")
    checkpoint = open_checkpoint(copied)
    for shard in copied.glob("*.safetensors"):
        shard.unlink()
    assert list(source_of(checkpoint)["sha256"]) == ["config.json", "model.safetensors.index.json"]


def test_the_tools_are_this_package_and_what_is_installed_of_the_others() -> None:
    versions = tool_versions()
    assert next(iter(versions)) == "nvembed-deploy"
    assert versions["nvembed-deploy"] == nvembed_deploy.__version__
    assert {"numpy", "onnx", "tokenizers"} <= versions.keys()
