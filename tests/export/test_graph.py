"""Tests of nvembed_deploy/export/graph.py, dialect.py and builder.py together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from nvembed_deploy.export.builder import WeightData
from nvembed_deploy.export.graph import INPUTS, OUTPUT, GraphOptions, author_blocks, author_graph
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.onnx_session import session_options
from nvembed_deploy.spec import ModelSpec, PoolerForm, Precision
from tests import factories, reference
from tests.export.written import weight_file

ALL = [(o, f, p) for o in (20, 23) for f in PoolerForm for p in Precision]


def save(weights: Weights, options: GraphOptions, folder: Path) -> Path:
    """Write graph and weights; return the graph's path."""
    block = author_graph(weights.spec, options)
    file = weight_file(weights, options, folder)
    path = folder / "model.onnx"
    ir.save(block.builder.model(block.inputs, block.output, block.opset, file.data), path)
    return path


def batch(lengths: tuple[int, ...], masked: int = 2) -> dict[str, np.ndarray]:
    """Return a right-padded batch of arbitrary ids; the first `masked` tokens are not pooled."""
    ids = np.full((len(lengths), max(lengths)), 2, np.int64)
    attention = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = (np.arange(length) * 11 + row) % 300
        attention[row, :length] = 1
    pool = attention.copy()
    pool[:, :masked] = 0
    return dict(zip(INPUTS, (ids, attention, pool), strict=True))


def run(
    path: Path,
    inputs: dict[str, np.ndarray],
    *,
    as_written: bool = False,
    is_for_cpu: bool = False,
) -> np.ndarray:
    """Run a graph; `as_written` without ONNX Runtime's own rewrites (it rounds inputs of INT4)."""
    options = session_options(is_for_cpu=is_for_cpu)
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, inputs)[0]
    return output


@pytest.mark.parametrize(("opset", "form", "precision"), ALL)
def test_the_graph_is_valid_onnx_with_its_conventional_names(
    tmp_path: Path, tiny_weights: Weights, opset: int, form: PoolerForm, precision: Precision
) -> None:
    path = save(tiny_weights, GraphOptions(precision, opset, form), tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert [i.name for i in model.graph.input] == list(INPUTS)
    assert [o.name for o in model.graph.output] == [OUTPUT]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {i.domain: i.version for i in model.opset_import} == {"": opset}
    assert all(node.domain == "" for node in model.graph.node)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("form", list(PoolerForm))
@pytest.mark.parametrize("lengths", [(5,), (3, 17, 9), (33,) * 5])
def test_the_graph_equals_the_second_implementation(
    tmp_path: Path, tiny_weights: Weights, opset: int, form: PoolerForm, lengths: tuple[int, ...]
) -> None:
    path = save(tiny_weights, GraphOptions(Precision.FP32, opset, form), tmp_path)
    assert off(path, lengths) <= 2e-6


@pytest.mark.parametrize(("opset", "form"), [(20, PoolerForm.FAITHFUL), (23, PoolerForm.FOLDED)])
def test_so_does_the_graph_in_float16(
    tmp_path: Path, tiny_weights: Weights, opset: int, form: PoolerForm
) -> None:
    path = save(tiny_weights, GraphOptions(Precision.FP16, opset, form), tmp_path)
    assert off(path, (3, 17, 9)) <= 2e-3  # 4.6e-4 and 7.8e-4


def off(path: Path, lengths: tuple[int, ...]) -> float:
    """Return the largest difference of a graph from the second implementation."""
    inputs = batch(lengths)
    arrays = (inputs["input_ids"], inputs["attention_mask"], inputs["pool_mask"])
    expected = reference.embed(factories.TINY, factories.weights(), arrays)
    return float(np.abs(run(path, inputs) - expected).max())


def test_the_last_token_reaches_the_first(tmp_path: Path, tiny_weights: Weights) -> None:
    path = save(tiny_weights, GraphOptions(), tmp_path)
    inputs = batch((12,))
    inputs["pool_mask"][:] = 0
    inputs["pool_mask"][0, 0] = 1
    before = run(path, inputs)
    inputs["input_ids"][0, -1] = 310
    assert np.abs(run(path, inputs) - before).max() > 1e-4


@pytest.mark.parametrize("form", list(PoolerForm))
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_text_with_no_pooled_token_gives_zeros(
    tmp_path: Path, tiny_weights: Weights, precision: Precision, form: PoolerForm
) -> None:
    path = save(tiny_weights, GraphOptions(precision, pooler_form=form), tmp_path)
    inputs = batch((4, 6))
    inputs["pool_mask"][0] = 0
    embedding_BD = run(path, inputs)
    assert not embedding_BD[0].any()
    assert np.linalg.norm(embedding_BD[1]) == pytest.approx(1, abs=1e-6)


def test_token_states_beyond_float16_stay_finite_in_float16(
    tmp_path: Path, tiny_weights: Weights
) -> None:
    """Massive activations add up past 65,504 in some models: the states are float32."""
    path = save(tiny_weights, GraphOptions(Precision.FP16), tmp_path)
    expected = run(path, batch((9,)))
    model = onnx.load(str(path))
    (gather,) = (n for n in model.graph.node if n.op_type == "Gather" and n.name == "embed")
    (widened,) = (n for n in model.graph.node if gather.output[0] in n.input)
    scaled = onnx.helper.make_node("Mul", [widened.output[0], "huge"], ["scaled_states"])
    for node in model.graph.node:
        node.input[:] = ["scaled_states" if i == widened.output[0] else i for i in node.input]
    model.graph.node.insert(list(model.graph.node).index(widened) + 1, scaled)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e6), "huge"))
    onnx.save(model, tmp_path / "huge.onnx")
    got = run(tmp_path / "huge.onnx", batch((9,)))
    assert np.isfinite(got).all()
    assert not np.allclose(got, expected)


@pytest.mark.parametrize("opset", [20, 23])
def test_key_heads_are_not_repeated(opset: int) -> None:
    """Grouped-query attention stays grouped: no node widens k or v to the query heads."""
    block = author_graph(factories.TINY, GraphOptions(opset=opset))
    kinds = {node.op_type for node in block.builder.nodes}
    assert not kinds & {"Tile", "ConstantOfShape", "GatherElements"}
    expands = [node.name for node in block.builder.nodes if node.op_type == "Expand"]
    assert all(name is not None and "layers" not in name for name in expands)


def test_authoring_is_deterministic() -> None:
    names = [
        [(n.op_type, n.name) for n in author_graph(factories.TINY, GraphOptions()).builder.nodes]
        for _ in range(2)
    ]
    assert names[0] == names[1]


def test_the_full_model_is_authored_with_7_85_billion_parameters_when_faithful() -> None:
    block = author_graph(ModelSpec(), GraphOptions(pooler_form=PoolerForm.FAITHFUL))
    assert sum(int(np.prod(e.shape)) for e in block.weights) == 7_851_016_192
    folded = author_graph(ModelSpec(), GraphOptions())
    assert sum(int(np.prod(e.shape)) for e in folded.weights) < 7_851_016_192 - 500_000_000


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_blocks_in_a_row_equal_the_whole_graph(
    tmp_path: Path, tiny_weights: Weights, precision: Precision
) -> None:
    path = save(tiny_weights, GraphOptions(precision), tmp_path)
    inputs = batch((7, 4))
    expected = run(path, inputs)
    data = _data(path)
    state = None
    for block in author_blocks(factories.TINY, GraphOptions(precision)):
        model = block.builder.model(block.inputs, block.output, block.opset, data)
        ir.save(model, tmp_path / "block.onnx")
        feed = {v.name: state if v.name == "hidden" else inputs[v.name] for v in block.inputs}
        state = run(tmp_path / "block.onnx", feed)  # type: ignore[arg-type]
    assert state is not None
    assert np.abs(state - expected).max() <= (1e-6 if precision is Precision.FP32 else 2e-3)


def _data(path: Path) -> WeightData:
    model = onnx.load(str(path), load_external_data=False)
    offsets = {
        tensor.name: int({e.key: e.value for e in tensor.external_data}["offset"])
        for tensor in model.graph.initializer
        if tensor.external_data
    }
    return WeightData(path.with_name("model.onnx_data"), offsets)


def test_a_traced_graph_of_the_torch_model_says_the_same(
    tmp_path: Path, tiny_weights: Weights
) -> None:
    """torch.onnx.export of the oracle module, the usual way, as a third opinion."""
    import torch

    from nvembed_deploy.model.nvembed import load_model

    inputs = batch((6, 9))
    tensors = tuple(torch.from_numpy(inputs[name]) for name in INPUTS)
    traced = tmp_path / "traced.onnx"
    torch.onnx.export(
        load_model(tiny_weights), tensors, traced, dynamo=True, input_names=list(INPUTS)
    )
    authored = save(tiny_weights, GraphOptions(), tmp_path)
    assert np.abs(run(authored, inputs) - run(traced, inputs)).max() <= 2e-6
