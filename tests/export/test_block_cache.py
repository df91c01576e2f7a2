"""Tests of nvembed_deploy/export/block_cache.py: a calibration that was killed goes on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from nvembed_deploy.artifact import LAYOUT, hash_file
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export import pipeline
from nvembed_deploy.export.block_cache import BlockCache, load_states, open_cache, save_states
from nvembed_deploy.export.blocks import Blocks
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import Export, plan_export
from nvembed_deploy.export.recipe import load_recipe
from tests import factories

LAYERS = factories.TINY.backbone.num_layers
FILES = (LAYOUT.weights, LAYOUT.graph, LAYOUT.calibration)
RECIPES: dict[str, dict[str, Any]] = {
    "fp8": {"precision": "fp8", "fp8_rank": 16},
    "fp8-attention": {"precision": "fp8", "fp8_attention": True, "keep": ["*.0.*.v_proj"]},
    "fp8-static": {"precision": "fp8", "activations": "static"},
    "int8": {"precision": "int8", "per_token": []},
    "int4": {"precision": "int4-weight", "keep": ["pooler.*"]},
}


class Killed(BaseException):
    """What ends an export: nothing catches it."""


@pytest.fixture
def plan(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Export]:
    """Plan an export of the tiny checkpoint, of two batches of texts, with a cache."""

    def planned(**values: Any) -> Export:
        given = {
            "calibration_texts": 20,
            "calibration_tokens": 16,
            "cache": str(tmp_path / "cache"),
        }
        return plan_export(tiny_checkpoint, load_recipe(None, given | values))

    return planned


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which layers were run by calibration, in order."""
    layers: list[int] = []
    load = Blocks.layer

    def layer(blocks: Blocks, index: int) -> Any:
        layers.append(index)
        return load(blocks, index)

    monkeypatch.setattr(Blocks, "layer", layer)
    return layers


def kill_after(export: Export, out: Path, blocks: int) -> None:
    """Run an export to the end of its n-th block, and no further."""
    add = BlockCache.add

    def add_and_die(cache: BlockCache, *args: Any) -> None:
        add(cache, *args)
        if cache.count == blocks:
            raise Killed

    with mock.patch.object(BlockCache, "add", add_and_die), pytest.raises(Killed):
        run_export(export, out)


def hashes(out: Path) -> dict[str, str]:
    return {name: hash_file(out / name) for name in FILES}


@pytest.mark.parametrize(
    ("name", "blocks"), [*((name, 1) for name in RECIPES), ("fp8", LAYERS), ("int8", LAYERS + 1)]
)
def test_an_export_that_goes_on_writes_what_one_that_was_not_killed_does(
    plan: Callable[..., Export],
    loaded: list[int],
    tmp_path: Path,
    name: str,
    blocks: int,
) -> None:
    values = RECIPES[name]
    run_export(plan(**values, cache=None), tmp_path / "whole")
    kill_after(plan(**values), tmp_path / "out", blocks)
    assert not (tmp_path / "out").exists()
    loaded.clear()
    run_export(plan(**values), tmp_path / "out")
    assert loaded == list(range(blocks, LAYERS)), "a finished layer was run again"
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_what_is_measured_first_finds_the_same_cache(
    plan: Callable[..., Export], tmp_path: Path
) -> None:
    """Which inputs need a range per token, what stays in 16 bit: the cache is of the answers."""
    values = {"precision": "int8", "keep_share": 0.2}
    kill_after(plan(**values), tmp_path / "out", 1)
    with mock.patch.object(BlockCache, "load", side_effect=Killed) as load, pytest.raises(Killed):
        run_export(plan(**values), tmp_path / "out")
    load.assert_called_once_with(0)


def test_only_the_last_states_are_kept_and_nothing_in_the_end(
    plan: Callable[..., Export], tmp_path: Path
) -> None:
    kill_after(plan(precision="fp8"), tmp_path / "out", LAYERS)
    (folder,) = (tmp_path / "cache").iterdir()
    assert [p.name for p in folder.glob("states-*")] == [f"states-{LAYERS - 1}.safetensors"]
    run_export(plan(precision="fp8"), tmp_path / "out")
    assert list((tmp_path / "cache").iterdir()) == []


def test_states_of_many_batches_come_back_in_their_order(tmp_path: Path) -> None:
    states = [np.full((1, 2, 3), place, np.float32) for place in range(12)]
    save_states(tmp_path / "states.safetensors", states)
    np.testing.assert_array_equal(load_states(tmp_path / "states.safetensors"), states)


@pytest.mark.parametrize(
    "other",
    [{"fp8_rank": 16}, {"seed": 1}, {"calibration_texts": 9}, {"keep": ["*.v_proj"]}],
    ids=lambda values: next(iter(values)),
)
def test_another_export_has_a_cache_of_its_own(
    plan: Callable[..., Export], tmp_path: Path, other: dict[str, Any]
) -> None:
    with (
        open_cache(plan(precision="fp8")) as one,
        open_cache(plan(precision="fp8", **other)) as two,
    ):
        assert one is not None
        assert two is not None
        assert one.folder != two.folder


@pytest.mark.parametrize("changed", ["weights", "texts"])
def test_a_changed_file_has_a_cache_of_its_own(
    plan: Callable[..., Export], tmp_path: Path, tiny_checkpoint: Path, changed: str
) -> None:
    texts, checkpoint = tmp_path / "texts.jsonl", tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    folders = []
    for round_ in "ab":
        if round_ == "a" or changed == "texts":
            texts.write_text('{"text": "of round ' + round_ + '"}\n')
        if round_ == "b" and changed == "weights":
            next(checkpoint.glob("*.safetensors")).touch()
        values = {"precision": "fp8", "calibration": str(texts), "cache": str(tmp_path / "cache")}
        with open_cache(plan_export(checkpoint, load_recipe(None, values))) as cache:
            assert cache is not None
            folders.append(cache.folder)
    assert folders[0] != folders[1]


def test_other_code_has_a_cache_of_its_own(
    plan: Callable[..., Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between versions too: blocks that older code rounded are not gone on from."""
    monkeypatch.setattr("nvembed_deploy.__file__", str(tmp_path / "package" / "__init__.py"))
    code, folders = tmp_path / "package" / "export" / "quantize.py", []
    code.parent.mkdir(parents=True)
    for text in ("LEAST = 1", "LEAST = 2", "LEAST = 1"):
        code.write_text(text)
        with open_cache(plan(precision="fp8")) as cache:
            assert cache is not None
            folders.append(cache.folder)
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("block-0.safetensors", b"cut"),
        ("block-0.json", b"{"),
        ("block-0.json", b"[]"),
        ("block-0.json", b'{"linears": ["x"], "ranges": {}}'),
        ("states-0.safetensors", b""),
    ],
)
def test_a_damaged_cache_is_named(
    plan: Callable[..., Export], tmp_path: Path, name: str, content: bytes
) -> None:
    kill_after(plan(precision="fp8"), tmp_path / "out", 1)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="cache of rounded blocks is damaged") as refused:
        run_export(plan(precision="fp8"), tmp_path / "out")
    assert refused.value.fix == f"remove {folder}"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_two_runs_of_one_export_do_not_share_a_cache(plan: Callable[..., Export]) -> None:
    export = plan(precision="fp8")
    with open_cache(export), pytest.raises(ArtifactError, match="in use"), open_cache(export):
        pass
    with open_cache(export):
        pass  # the first has let go


def test_a_cache_that_cannot_be_made_is_named(plan: Callable[..., Export], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot be made"), open_cache(plan(precision="fp8")):
        pass


def test_without_a_folder_there_is_no_cache(plan: Callable[..., Export]) -> None:
    with open_cache(plan(precision="fp8", cache=None)) as cache:
        assert cache is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_cache_is_held_until_the_artifact_is_there(
    plan: Callable[..., Export], tmp_path: Path
) -> None:
    check, texts = pipeline._check, tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the cat sat"}\n')
    export = plan(precision="fp8", calibration=str(texts))

    def check_meanwhile(*args: Any) -> Any:
        with pytest.raises(ArtifactError, match="in use"):
            run_export(export, tmp_path / "other")
        texts.unlink()  # the name of the cache is not found a second time
        return check(*args)

    with mock.patch.object(pipeline, "_check", check_meanwhile):
        run_export(export, tmp_path / "out")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_in_the_checkpoints_folder_is_found_again(
    plan: Callable[..., Export], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    few = {"calibration_texts": 8, "calibration_tokens": 16, "cache": str(checkpoint / "cache")}
    recipe = load_recipe(None, {"precision": "fp8"} | few)
    kill_after(plan_export(checkpoint, recipe), checkpoint / "onnx", 1)
    with open_cache(plan_export(checkpoint, recipe)) as cache:
        assert cache is not None
        assert cache.count == 1
