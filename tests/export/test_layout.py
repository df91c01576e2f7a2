"""Tests of nvembed_deploy/export/layout.py: without padding a graph says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from nvembed_deploy.export.formats import Kernels
from nvembed_deploy.export.graph import INPUTS, GraphOptions, author_blocks, author_graph
from nvembed_deploy.model.weights import Weights
from tests import factories
from tests.export.test_graph import batch, run, save
from tests.export.written import weight_file

UNPADDED = GraphOptions(kernels=Kernels.CPU)
LENGTHS = [(7,), (9, 9), (4, 11, 7), (2, 30, 3, 3), (16, 15, 14, 4, 4, 4, 2)]
LAST = factories.TINY.backbone.num_layers - 1
"""Index of the last layer."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> dict[str, Path]:
    """The float graph in both layouts."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("padded", "unpadded")}
    return {
        "padded": save(tiny_weights, GraphOptions(), folders["padded"]),
        "unpadded": save(tiny_weights, UNPADDED, folders["unpadded"]),
    }


def seen(path: Path, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return a value inside the graph."""
    model = onnx.load(str(path), load_external_data=False)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    onnx.save(model, str(path.with_name("seen.onnx")))
    session = onnxruntime.InferenceSession(str(path.with_name("seen.onnx")))
    found: np.ndarray = session.run([name], inputs)[0]
    return found


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_are_those_of_the_padded_graph(
    graphs: dict[str, Path], lengths: tuple[int, ...], masked: int
) -> None:
    inputs = batch(lengths, masked)
    outputs = [run(path, inputs) for path in graphs.values()]
    # The embedding table is kept in 16 bits in graphs for the CPU: 2^-11 of each value.
    np.testing.assert_allclose(*outputs, atol=2e-3)
    assert np.sum(outputs[0] * outputs[1], axis=1).min() > 0.99999


def test_onnx_own_evaluator_says_the_same(graphs: dict[str, Path]) -> None:
    """It takes nothing that only ONNX Runtime does, as an axis that is no scalar."""
    inputs = batch((4, 11, 7), 1)
    (expected,) = ReferenceEvaluator(str(graphs["unpadded"])).run(None, inputs)
    np.testing.assert_allclose(run(graphs["unpadded"], inputs), expected, atol=1e-5)


def test_a_text_gives_the_same_alone_and_among_others(graphs: dict[str, Path]) -> None:
    inputs = batch((5, 23, 12), masked=1)
    together = run(graphs["unpadded"], inputs)
    for row, length in enumerate((5, 23, 12)):
        alone = run(graphs["unpadded"], {k: v[row : row + 1, :length] for k, v in inputs.items()})
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_what_stands_in_the_padding_changes_nothing(graphs: dict[str, Path]) -> None:
    inputs = batch((3, 14), masked=1)
    other = {**inputs, "input_ids": np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 9)}
    assert not np.array_equal(inputs["input_ids"], other["input_ids"])
    np.testing.assert_array_equal(run(graphs["unpadded"], inputs), run(graphs["unpadded"], other))


def test_masked_tokens_between_kept_ones_are_left_out_too(graphs: dict[str, Path]) -> None:
    """Padding on the left, or holes: positions are those of the slots, in both layouts."""
    inputs = batch((8, 8), masked=0)
    inputs["attention_mask"][0, :3] = inputs["attention_mask"][1, 4] = 0
    inputs["pool_mask"] = inputs["attention_mask"].copy()
    outputs = [run(path, inputs) for path in graphs.values()]
    assert np.sum(outputs[0] * outputs[1], axis=1).min() > 0.99999


def test_a_text_without_pooled_tokens_gives_zeros(graphs: dict[str, Path]) -> None:
    inputs = batch((2, 9), masked=2)
    some = run(graphs["unpadded"], inputs)
    assert not some[0].any()
    assert np.isclose(np.linalg.norm(some[1]), 1)
    none = run(graphs["unpadded"], batch((2, 2), masked=2))
    assert none.shape == some.shape
    assert not none.any()


def test_linears_compute_kept_tokens_and_the_last_ones_pooled_tokens(
    graphs: dict[str, Path],
) -> None:
    inputs = batch((5, 23, 12), masked=4)
    kept, pooled = (int(inputs[name].sum()) for name in INPUTS[1:])
    product = "layers.{0}.backbone.layers.{0}.{1}"
    shapes = {n: seen(graphs[n], product.format(0, "self_attn.v_proj"), inputs) for n in graphs}
    assert {n: shape.shape[:2] for n, shape in shapes.items()} == dict.fromkeys(graphs, (3, 23))
    for name, rows in (
        (product.format(0, "mlp.down_proj"), kept),
        (product.format(LAST, "self_attn.o_proj"), pooled),
        (product.format(LAST, "mlp.down_proj"), pooled),
        ("pooler.pooler.scores", pooled),
    ):
        assert seen(graphs["unpadded"], name, inputs).shape[:2] == (1, rows), name
        assert seen(graphs["padded"], name, inputs).shape[:2] == (3, 23), name


@pytest.mark.parametrize("kernels", Kernels)
def test_blocks_in_a_row_equal_the_whole_graph_on_kept_tokens(
    tmp_path: Path, tiny_weights: Weights, kernels: Kernels
) -> None:
    options = GraphOptions(kernels=kernels)
    file, inputs = weight_file(tiny_weights, options, tmp_path), batch((7, 4), masked=1)
    whole = author_graph(tiny_weights.spec, options)
    state = np.empty(0)
    for block in [*author_blocks(tiny_weights.spec, options), whole]:
        ir.save(
            block.builder.model(block.inputs, block.output, block.opset, file.data),
            tmp_path / "block.onnx",
        )
        feed = {
            v.name or "": state if v.name == "hidden" else inputs[v.name or ""]
            for v in block.inputs
        }
        before, state = state, run(tmp_path / "block.onnx", feed)
    np.testing.assert_allclose(before, state, atol=1e-6)
