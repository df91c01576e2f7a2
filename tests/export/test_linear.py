"""Tests of nvembed_deploy/export/linear.py: quantised graphs, run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from nvembed_deploy.export.formats import SCHEMES, Formats, Kernels
from nvembed_deploy.export.graph import GraphOptions, author_graph
from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.export.nearest import NearestQuantizer
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import Precision
from tests import factories
from tests.export.test_graph import batch, run, save

CASES = [
    *((name, opset) for name in ("fp8", "int8", "int8-weight") for opset in (20, 23)),
    *((name, 23) for name in ("int4-weight", "int8-cpu")),
]
FLOORS = {"fp8": 0.98, "int8": 0.998, "int8-weight": 0.999, "int4-weight": 0.8, "int8-cpu": 0.998}


def options_of(name: str, opset: int = 23, precision: Precision = Precision.FP16) -> GraphOptions:
    scheme = SCHEMES[name]
    # The tiny pooler's 24 scores are no multiple of a block.
    keep = ("pooler.values",) if name == "int4-weight" else ()
    formats = Formats(scheme.linear, keep, kept=scheme.kept)
    precision = scheme.precision if scheme.kernels is Kernels.CPU else precision
    return GraphOptions(
        precision, opset, formats=formats, rotates=scheme.rotates, kernels=scheme.kernels
    )


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_a_quantised_graph_is_valid_and_near_the_float_one(
    tmp_path: Path, tiny_weights: Weights, name: str, opset: int
) -> None:
    inputs = batch((3, 17, 9))
    for folder in ("float", "quantised"):
        (tmp_path / folder).mkdir()
    plain = run(save(tiny_weights, GraphOptions(opset=opset), tmp_path / "float"), inputs)
    path = save(tiny_weights, options_of(name, opset), tmp_path / "quantised")
    onnx.checker.check_model(str(path), full_check=True)
    is_for_cpu = SCHEMES[name].kernels is Kernels.CPU
    cosines = (run(path, inputs, is_for_cpu=is_for_cpu) * plain).sum(1)
    assert cosines.min() >= FLOORS[name]
    assert cosines.max() < 1 - 1e-9


@pytest.mark.parametrize("name", ["int8-weight", "int4-weight"])
def test_weight_only_is_the_float_graph_with_rounded_weights(
    tmp_path: Path, tiny_weights: Weights, name: str
) -> None:
    options = replace(options_of(name, precision=Precision.FP32), rotates=False)
    path = save(tiny_weights, options, tmp_path)
    with open_linears(tiny_weights, is_folded=True) as linears:
        quantizer = NearestQuantizer(linears, options.formats)
        block = author_graph(factories.TINY, GraphOptions())
        names = [e.name.removesuffix(".weight_t") for e in block.weights if "weight_t" in e.name]
        quantised = [name for name in names if options.formats.of(name, 64) is not None]
        rounded = {name + ".weight_t": quantizer(name).dequantize().T for name in quantised}
    (tmp_path / "float").mkdir()
    reference = save(tiny_weights, GraphOptions(), tmp_path / "float")
    graph = onnx.load(str(reference))
    for tensor in graph.graph.initializer:
        if tensor.name in rounded:
            array = np.ascontiguousarray(rounded[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(graph, tmp_path / "rounded.onnx")
    inputs = batch((3, 17, 9))
    got = run(path, inputs, as_written=True)
    assert np.abs(got - run(tmp_path / "rounded.onnx", inputs)).max() <= 2e-6


def test_a_token_of_huge_values_does_not_coarsen_the_others(
    tmp_path: Path, tiny_weights: Weights
) -> None:
    """The point of a range per row: batch mates and other tokens do not matter."""
    path = save(tiny_weights, options_of("int8", precision=Precision.FP32), tmp_path)
    alone, mixed = batch((9,)), batch((9, 40))
    np.testing.assert_allclose(run(path, alone)[0], run(path, mixed)[0], atol=3e-3)
    kinds = [n.op_type for n in onnx.load(str(path), load_external_data=False).graph.node]
    assert kinds.count("ReduceMax") == kinds.count("QuantizeLinear")


def test_linears_that_share_an_input_share_its_rounding(tmp_path: Path) -> None:
    block = author_graph(factories.TINY, options_of("int8"))
    rounded = [n for n in block.builder.nodes if n.op_type == "QuantizeLinear"]
    products = [n for n in block.builder.nodes if n.op_type == "MatMul"]
    layers = factories.TINY.backbone.num_layers
    assert len(rounded) == 4 * layers + 4  # qkv, o, gate and up, down; the pooler's four
    assert len(products) > len(rounded)


def test_kept_linears_are_float(tmp_path: Path, tiny_weights: Weights) -> None:
    formats = Formats(SCHEMES["int8"].linear, keep=("pooler.*", "*down_proj"))
    block = author_graph(factories.TINY, GraphOptions(Precision.FP16, formats=formats))
    kinds = {e.name: e.dtype.name for e in block.weights if e.name.endswith(".weight_t")}
    kept = {name for name, kind in kinds.items() if kind == "FLOAT16"}
    assert kept == {n for n in kinds if n.startswith("pooler") or "down_proj" in n}
    assert len(kept) < len(kinds)


def test_ranges_are_symmetric_and_scales_constant(tmp_path: Path, tiny_weights: Weights) -> None:
    """What TensorRT takes as strongly typed: zero points are 0, scales are initializers."""
    for name in ("int8", "fp8"):
        path = save(tiny_weights, options_of(name), tmp_path)
        model = onnx.load(str(path), load_external_data=False)
        constants = {t.name for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert set(node.input[1:]) <= constants
        zeros = [t for t in model.graph.initializer if t.name.startswith("zero_")]
        assert zeros
        assert not any(np.any(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in zeros)


def test_a_row_of_zeros_gives_no_nan(tmp_path: Path, tiny_weights: Weights) -> None:
    path = save(tiny_weights, options_of("fp8"), tmp_path)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "backbone.embed_tokens.weight":
            table = onnx.numpy_helper.to_array(tensor).copy()
            table[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(table, tensor.name))
    onnx.save(model, tmp_path / "zero.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "zero.onnx"))
    assert np.isfinite(session.run(None, batch((1, 5)))[0]).all()
