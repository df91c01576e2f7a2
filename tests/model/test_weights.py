"""Tests of nvembed_deploy/model/weights.py."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.names import released_name
from nvembed_deploy.model.weights import Weights, open_weights
from nvembed_deploy.tensorfile import open_tensors
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


class CountedTensor:
    """A tensor in memory that counts how often each row is read."""

    path = Path("memory")

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.reads = array, array.shape, Counter[int]()

    def read(self, rows: slice | None = None) -> np.ndarray:
        rows = rows or slice(None)
        self.reads.update(range(*rows.indices(len(self.array))))
        return self.array[rows]


def test_tokens_are_embedded_in_place_and_each_row_is_read_once() -> None:
    name = "backbone.embed_tokens.weight"
    tensor = CountedTensor(factories.weights()[name].astype(np.float16))
    ids_BS = np.array([[5, 2, 5], [7, 5, 2]])
    embeddings_BSD = Weights(factories.TINY, {name: tensor}).embed(ids_BS)
    assert (embeddings_BSD.dtype, embeddings_BSD.shape) == (np.float32, (2, 3, 64))
    assert np.array_equal(embeddings_BSD, tensor.array[ids_BS])
    assert tensor.reads == {2: 1, 5: 1, 7: 1}


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
        (
            lambda t: t.update({"norm.weight": t["model.norm.weight"]}),
            r"backbone\.norm\.weight is in .* and, as (model\.)?norm\.weight, in",
        ),
    ],
    ids=["missing", "extra-layer", "extra", "wrong-shape", "two-names"],
)
def test_what_does_not_fit_is_named_with_file_and_shape(
    tmp_path: Path, tiny_base: Path, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        damaged(tiny_base, tmp_path, change)


@pytest.mark.parametrize(
    "key", [KEY, released_name("backbone.norm.weight"), "norm.weight", "backbone.norm.weight"]
)
def test_a_pooler_file_with_a_layer_is_refused_by_name(
    tmp_path: Path, tiny_assembled: Path, key: str
) -> None:
    checkpoint = open_checkpoint(tiny_assembled)
    path = factories.write_pooler(tmp_path / "shard.safetensors")
    save_file({**load_file(path), key: np.zeros((96, 64), np.float32)}, path)
    shard = replace(checkpoint, pooler=open_tensors(path))
    problem = rf"shard\.safetensors is to be a pooler, but holds 1 tensor of a decoder, as {key}"
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_weights(shard)
    assert caught.value.fix.startswith("give a file of the pooler's tensors alone")


def test_a_pooler_file_may_hold_what_no_embedder_uses(tmp_path: Path, tiny_assembled: Path) -> None:
    path = factories.write_pooler(tmp_path / "pooler.safetensors")
    save_file({**load_file(path), "lm_head.weight": np.zeros((2, 2), np.float32)}, path)
    checkpoint = replace(open_checkpoint(tiny_assembled), pooler=open_tensors(path))
    assert open_weights(checkpoint).read("pooler.latents").any()


def test_nan_is_refused_with_its_place(tmp_path: Path, tiny_base: Path) -> None:
    def plant(tensors: dict[str, np.ndarray]) -> None:
        tensors[KEY] = tensors[KEY].copy()
        tensors[KEY][7, 5] = np.nan

    weights = open_weights(open_checkpoint(damaged(tiny_base, tmp_path, plant)))
    with pytest.raises(CheckpointError, match=r"up_proj.*model\.safetensors.*nan at \(7, 5\)"):
        weights.read("backbone.layers.1.mlp.up_proj.weight", slice(4, 20))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_values_of_a_format_without_fractions_are_refused(
    tmp_path: Path, tiny_base: Path, dtype: type
) -> None:
    def plant(tensors: dict[str, np.ndarray]) -> None:
        tensors[KEY] = tensors[KEY].astype(dtype)

    weights = open_weights(open_checkpoint(damaged(tiny_base, tmp_path, plant)))
    with pytest.raises(CheckpointError, match=rf"got {np.dtype(dtype)} values, expected a float"):
        weights.read("backbone.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(
    "tail", ["weight_scale_inv", "SCB", "qweight", "weight_packed", "weight.absmax"]
)
def test_quantised_weights_are_told_from_incomplete_ones(
    tmp_path: Path, tiny_base: Path, tail: str
) -> None:
    """Tails of FP8, bitsandbytes in 8 and 4 bit, AWQ and GPTQ, and compressed-tensors."""

    def plant(tensors: dict[str, np.ndarray]) -> None:
        tensors[KEY.removesuffix("weight") + tail] = np.ones(2, np.float32)

    with pytest.raises(CheckpointError, match=f"unexpected .*{tail}") as caught:
        damaged(tiny_base, tmp_path, plant)
    assert "before quantisation" in caught.value.fix


def test_several_problems_are_listed_together(tmp_path: Path, tiny_base: Path) -> None:
    def plant(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(3):
            del tensors[f"model.layers.{layer}.input_layernorm.weight"]

    with pytest.raises(CheckpointError, match="3 tensors do not fit"):
        damaged(tiny_base, tmp_path, plant)
