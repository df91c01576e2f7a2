"""Tests of nvembed_deploy/onnx_session.py."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nvembed_deploy import onnx_session
from nvembed_deploy.onnx_session import session_options

INNER, OUTER = 256, 32


def product(weight_IO: np.ndarray, op: str) -> ModelProto:
    """Return a graph of one product of unsigned by signed bytes."""
    arrays = {
        "weight": weight_IO,
        "one": np.float32(1),
        "ones": np.ones(OUTER, np.float32),
        "zero": np.uint8(128),
    }
    if op == "MatMulInteger":
        inputs, domain, output = ["codes", "weight", "zero"], "", TensorProto.INT32
    else:
        inputs = ["codes", "weight", "one", "ones", "zero"]
        domain, output = "com.microsoft", TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain)],
        "product",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["rows", INNER])],
        [helper.make_tensor_value_info("y", output, ["rows", OUTER])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items() if n in inputs],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("op", ["MatMulInteger", "MatMulIntegerToFloat"])
def test_products_of_the_largest_bytes_are_exact_on_this_processor(op: str, rows: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.choice(np.array([-127, 127], np.int8), (INNER, OUTER))
    codes = generator.choice(np.array([0, 255], np.uint8), (rows, INNER))
    model = product(weight, op).SerializeToString()
    session = onnxruntime.InferenceSession(model, session_options(is_for_cpu=True))
    expected = (codes.astype(np.int64) - 128) @ weight
    np.testing.assert_array_equal(session.run(None, {"codes": codes})[0], expected)


@pytest.mark.parametrize("saturates", [False, True])
def test_exact_products_are_asked_for_only_where_products_saturate(
    monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    """On a processor with VNNI they cost twice the time."""
    monkeypatch.setattr(onnx_session, "saturates", lambda: saturates)
    options, key = session_options(is_for_cpu=True), "session.x64quantprecision"
    if saturates:
        assert options.get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


def test_inputs_of_4_bit_weights_are_not_rounded() -> None:
    """ONNX Runtime makes one operator of both, which rounds inputs to 8 bits if it may."""
    rng = np.random.default_rng(0)
    codes_IO = rng.integers(-7, 8, (INNER, OUTER)).astype(np.int8)
    packed = (codes_IO.reshape(-1)[0::2] & 0xF) | (codes_IO.reshape(-1)[1::2] << 4)
    scale_GO = rng.uniform(0.5, 1, (INNER // 32, OUTER)).astype(np.float32)
    shape, raw = (INNER, OUTER), packed.astype(np.uint8).tobytes()
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0, block_size=32),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTER])],
        [
            helper.make_tensor("codes", TensorProto.INT4, shape, raw, raw=True),
            numpy_helper.from_array(scale_GO, "scale"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    x_NI = rng.standard_normal((9, INNER)).astype(np.float32)
    expected = x_NI @ (codes_IO * np.repeat(scale_GO, 32, 0))

    def error(options: onnxruntime.SessionOptions) -> float:
        (y_NO,) = onnxruntime.InferenceSession(model, options).run(None, {"x": x_NI})
        return float(np.abs(y_NO - expected).max() / np.abs(expected).max())

    assert error(session_options(is_for_cpu=False)) < 1e-5
    assert error(onnxruntime.SessionOptions()) > 1e-4, "its own choice has changed"


def test_the_probe_is_one_product_of_unsigned_by_signed_bytes() -> None:
    model = ModelProto.FromString(onnx_session._PROBE)
    (node,) = model.graph.node
    assert node.op_type == "MatMulInteger"
    types = [value.type.tensor_type.elem_type for value in model.graph.input]
    assert types == [TensorProto.UINT8, TensorProto.INT8]
