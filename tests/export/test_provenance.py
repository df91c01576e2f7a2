"""Tests of nvembed_deploy/export/provenance.py: no file that shapes a vector goes unnamed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nvembed_deploy
from nvembed_deploy.artifact import hash_file
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.export.provenance import source_of, tool_versions
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.spec import Pooling
from tests import factories
from tests.model.test_adapter import write_adapter
from tests.tensor_data import gguf_metadata, gguf_tensors, write_gguf


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
    named = list(hashes(checkpoint))
    assert named == ["checkpoint.json", "base/config.json", "tokenizer.json"]


def test_a_released_models_weights_are_not_read(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copied = shutil.copytree(tiny_checkpoint, tmp_path / "released")
    checkpoint = open_checkpoint(copied)
    for shard in copied.glob("*.safetensors"):
        shard.unlink()
    named = list(source_of(checkpoint)["sha256"])
    assert named == ["config.json", "model.safetensors.index.json", "tokenizer.json"]


@pytest.mark.parametrize("copied", [False, True], ids=["elsewhere", "copied"])
def test_the_bases_config_and_the_tokenizer_are_named_wherever_they_lie(
    tmp_path: Path, tiny_base: Path, copied: bool
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "decoder"))
    out = tmp_path / "out"
    assemble_checkpoint(Parts(base, pooler_spec=factories.TINY.pooler), out, copy_base=copied)
    config = (out / "base" if copied else base) / "config.json"
    before = hashes(out)
    change(config, rope_theta=5000.0)
    after = hashes(out)
    assert [n for n in before if before[n] != after[n]] == ["base/config.json"]
    (out / "tokenizer.json").unlink()
    change(config.parent / "tokenizer.json", version="1.1")
    assert [n for n in after if after[n] != hashes(out)[n]] == ["tokenizer.json"]


def test_a_gguf_base_is_weights_and_is_not_read(tmp_path: Path) -> None:
    tokens = ["a", "b", "ab", *map(str, range(3, factories.TINY.backbone.vocab_size))]
    metadata = gguf_metadata() | {"tokenizer.ggml.tokens": tokens}
    base = write_gguf(tmp_path / "base.gguf", metadata, gguf_tensors())
    (tmp_path / "config.json").write_text("{}")  # of something else
    parts = Parts(base, pooler_spec=replace(factories.TINY.pooler, pooling=Pooling.MEAN))
    assemble_checkpoint(parts, tmp_path / "out")
    assert list(hashes(tmp_path / "out")) == ["checkpoint.json", "tokenizer.json"]
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert list(hashes(tmp_path / "out")) == ["checkpoint.json"]


def test_the_tools_are_this_package_and_what_is_installed_of_the_others() -> None:
    versions = tool_versions()
    assert next(iter(versions)) == "nvembed-deploy"
    assert versions["nvembed-deploy"] == nvembed_deploy.__version__
    assert {"numpy", "onnx", "tokenizers"} <= versions.keys()
