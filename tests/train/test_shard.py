"""Tests of nvembed_deploy/train/shard.py: two processes are one, with shared or whole weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nvembed_deploy.train import loop
from nvembed_deploy.train.journal import read_log
from nvembed_deploy.train.recipe import load_recipe
from tests.train import pairs, runs
from tests.train.gradients import gradients, write_gradients
from tests.train.processes import two

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SECTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"dropout": 0.0},
    "batch": {"queries": 6, "chunk_tokens": 60, "live_tokens": 150},
}
"""Several chunks a process, of which some are computed twice."""


def train(recipe: Path, changes: dict[str, str] | None = None, *, resume: bool = False) -> None:
    """Run a recipe, in one process of two."""
    assert loop.train(load_recipe(recipe, changes), resume=resume).processes == 2


def write_recipe(base: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    data = pairs.write_pairs(folder / "pairs.jsonl")
    values = pairs.values(base, data, folder / "one", **{**SECTIONS, **changes})
    return pairs.write_toml(folder / "recipe.toml", values)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_two_processes_find_the_gradients_of_one(
    tiny_base: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    run = {"shard": True, "gradient_checkpointing": True, "precision": precision}
    path = write_recipe(tiny_base, tmp_path, run=run)
    two(write_gradients, path, tmp_path / "two.safetensors", log=tmp_path / "log")
    whole, found = gradients(load_recipe(path)), load_file(tmp_path / "two.safetensors")
    assert set(found) == set(whole)
    for name, gradient in whole.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


def test_a_sharded_recipe_of_one_process_is_moved_to_its_device(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Mixture", lambda *_: None)
    path = write_recipe(tiny_base, tmp_path, run={"shard": True})
    elsewhere: Any = SimpleNamespace(device=torch.device("meta"), num_processes=1)
    run = loop._Run(load_recipe(path), elsewhere, [])
    assert {p.device.type for p in run.learner.parameters()} == {"meta"}


@pytest.mark.parametrize("shard", ["true", "false"])
def test_two_processes_train_what_one_trains_and_one_goes_on_from_theirs(
    tiny_base: Path, tmp_path: Path, shard: str
) -> None:
    path = write_recipe(tiny_base, tmp_path)
    loop.train(load_recipe(path))
    changes = {"run.out": str(tmp_path / "two"), "run.shard": shard}
    two(train, path, changes, log=tmp_path / "log")
    logs = (read_log(tmp_path / name) for name in ("one", "two"))
    for ours, theirs in zip(*logs, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-5)
    runs.assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    shutil.rmtree(tmp_path / "two" / "steps" / "000006")
    loop.train(load_recipe(path, changes), resume=True)
    runs.assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-5)


def test_two_processes_go_on_from_what_one_saved(tiny_base: Path, tmp_path: Path) -> None:
    path = write_recipe(tiny_base, tmp_path, run={"shard": True})
    loop.train(load_recipe(path))
    shutil.copytree(tmp_path / "one", tmp_path / "whole")
    shutil.rmtree(tmp_path / "one" / "steps" / "000006")
    two(partial(train, resume=True), path, log=tmp_path / "log")
    assert len(read_log(tmp_path / "one")) == 6
    runs.assert_same(tmp_path / "one", tmp_path / "whole", tolerance=1e-5)


def test_a_step_without_a_finite_loss_is_left_out_by_both(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"loss": {"temperature": 1e-45}, "run": {"shard": True, "on_nan": "skip"}}
    path = write_recipe(tiny_base, tmp_path, **changes)
    command = [*TORCHRUN, "-m", "nvembed_deploy.train", str(path), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=pairs.ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout)
    assert (report["processes"], report["skipped"]) == (2, 6)
