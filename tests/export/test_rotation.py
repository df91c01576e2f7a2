"""Tests of nvembed_deploy/export/rotation.py: exact, for every kind of width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.export.graph import GraphOptions
from nvembed_deploy.export.rotation import (
    UNROTATE,
    RotatedWeights,
    Rotation,
    feature_block,
    hadamard,
)
from nvembed_deploy.model.names import expected_shapes
from nvembed_deploy.model.weights import Weights
from tests import factories
from tests.export.test_graph import batch, run, save


@pytest.mark.parametrize("size", [1, 2, 32, 128])
def test_hadamard_matrices_are_orthogonal(size: int) -> None:
    matrix = hadamard(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)


@pytest.mark.parametrize("width", [64, 96, 576, 4096])
def test_a_rotation_keeps_lengths_and_angles_and_spreads_an_outlier(width: int) -> None:
    rotate = Rotation(width)
    rows = factories.values("rows", (5, width))
    np.testing.assert_allclose(rotate(rows) @ rotate(rows).T, rows @ rows.T, rtol=1e-4, atol=1e-3)
    spike = np.zeros((1, width), np.float32)
    spike[0, 3] = 1
    assert np.abs(rotate(spike)).max() < 0.3
    np.testing.assert_array_equal(Rotation(width)(rows), rotate(rows))
    assert not np.allclose(Rotation(width, seed=1)(rows), rotate(rows))


@pytest.mark.parametrize("opset", [20, 23])
def test_the_rotated_graph_is_the_same_function(
    tmp_path: Path, tiny_weights: Weights, opset: int
) -> None:
    inputs = batch((3, 17, 9))
    paths = []
    for rotates in (False, True):
        folder = tmp_path / str(rotates)
        folder.mkdir()
        paths.append(save(tiny_weights, GraphOptions(opset=opset, rotates=rotates), folder))
    plain, rotated = (run(path, inputs) for path in paths)
    assert np.abs(plain - rotated).max() <= 2e-6


def test_rows_read_alone_are_rows_of_the_whole(tiny_weights: Weights) -> None:
    rotated = RotatedWeights(tiny_weights)
    for name in expected_shapes(factories.TINY):
        whole = rotated.read(name)
        rows = slice(1, min(whole.shape[0], 21))
        np.testing.assert_allclose(rotated.read(name, rows), whole[rows], atol=1e-6)


def test_every_weight_of_the_decoder_is_turned_and_the_pooler_is_not(
    tiny_weights: Weights,
) -> None:
    rotated = RotatedWeights(tiny_weights)
    assert rotated.shapes.keys() - tiny_weights.shapes.keys() == {UNROTATE + ".weight"}
    for name in tiny_weights.shapes:
        is_equal = np.array_equal(rotated.read_float32(name), tiny_weights.read_float32(name))
        assert is_equal == name.startswith("pooler."), name


def test_blocks_of_features_divide_the_feed_forward() -> None:
    assert factories.TINY.backbone.intermediate_size % feature_block(factories.TINY) == 0
