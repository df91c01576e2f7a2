"""Tests of nvembed_deploy/model/weights.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.weights import Weights, open_weights
from tests import factories


def test_a_released_checkpoint_reads_as_it_was_written(tiny_checkpoint: Path) -> None:
    weights = open_weights(open_checkpoint(tiny_checkpoint))
    for name, array in factories.weights().items():
        assert np.array_equal(weights.read(name), array.astype(np.float16)), name


def test_an_assembled_checkpoint_reads_as_it_was_written(tiny_weights: Weights) -> None:
    for name, array in factories.weights().items():
        assert np.array_equal(tiny_weights.read(name), array), name


def test_rows_are_the_rows_of_the_whole(tiny_weights: Weights) -> None:
    name = "backbone.layers.2.mlp.down_proj.weight"
    blocks = [tiny_weights.read(name, rows) for rows in tiny_weights.row_blocks(name, 4000)]
    assert len(blocks) > 3
    assert np.array_equal(np.concatenate(blocks), tiny_weights.read(name))


def damaged(source: Path, folder: Path, change: Any) -> Path:
    """Copy an assembled checkpoint with its base inside, and change the base's tensors."""
    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint

    base = source / "model.safetensors"
    copied = folder / "base"
    shutil.copytree(base.parent, copied)
    tensors = load_file(base)
    change(tensors)
    save_file(tensors, copied / "model.safetensors")
    pooler = factories.write_pooler(folder / "pooler.safetensors")
    out = folder / "checkpoint"
    assemble_checkpoint(Parts(copied, pooler=pooler, pooler_spec=factories.TINY.pooler), out)
    return out


KEY = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"missing backbone\.layers\.1\.mlp\.up_proj\.weight.*\[96, 64\]"),
        (lambda t: t.update({"model.layers.9.x": np.zeros(2)}), r"unexpected backbone\.layers\.9"),
        (lambda t: t.update({"vision.weight": np.zeros(2)}), r"unexpected vision\.weight"),
        (lambda t: t.update({KEY: np.zeros((96, 63), np.float32)}), r"got shape \[96, 63\]"),
    ],
    ids=["missing", "extra-layer", "extra", "wrong-shape"],
)
def test_what_does_not_fit_is_named_with_file_and_shape(
    tmp_path: Path, tiny_base: Path, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        damaged(tiny_base, tmp_path, change)


def test_nan_is_refused_with_its_place(tmp_path: Path, tiny_base: Path) -> None:
    def plant(tensors: dict[str, np.ndarray]) -> None:
        tensors[KEY] = tensors[KEY].copy()
        tensors[KEY][7, 5] = np.nan

    weights = open_weights(open_checkpoint(damaged(tiny_base, tmp_path, plant)))
    with pytest.raises(CheckpointError, match=r"up_proj.*model\.safetensors.*nan at \(7, 5\)"):
        weights.read("backbone.layers.1.mlp.up_proj.weight", slice(4, 20))


def test_several_problems_are_listed_together(tmp_path: Path, tiny_base: Path) -> None:
    def plant(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(3):
            del tensors[f"model.layers.{layer}.input_layernorm.weight"]

    with pytest.raises(CheckpointError, match="3 tensors do not fit"):
        damaged(tiny_base, tmp_path, plant)
