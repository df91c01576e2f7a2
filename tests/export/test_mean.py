"""Tests of nvembed_deploy/export/mean.py: two ways to average the same tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from nvembed_deploy.export.builder import GraphBuilder
from nvembed_deploy.export.mean import Mean, RowMean
from nvembed_deploy.spec import Precision

SHAPES = {"mask": ["B", "S"], "padded": ["B", "S", 5], "rows": [1, "P", 5], "places": ["P"]}


def session() -> onnxruntime.InferenceSession:
    """Return a graph that averages padded states by `Mean` and the same in a row by `RowMean`."""
    b = GraphBuilder(Precision.FP32, Precision.FP32)
    kinds = {"mask": ir.DataType.INT64, "places": ir.DataType.INT64}
    mask, padded, rows, places = inputs = [
        b.input(name, kinds.get(name, ir.DataType.FLOAT), shape) for name, shape in SHAPES.items()
    ]
    mean, row_mean = Mean(b, mask), RowMean(b, mask, places)
    outputs = [
        mean.of_states(padded),
        mean.of_features(padded),
        row_mean.of_states(rows),
        row_mean.of_features(rows),
        row_mean.is_any_kept_B1,
    ]
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=b.nodes,
        initializers=list(b.initializers.values()),
        opset_imports={"": 23},
        name="means",
    )
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("seed", range(4))
def test_both_are_numpys_mean_over_each_texts_tokens(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask_BS = generator.integers(0, 2, (4, 7))
    mask_BS[:, 0], mask_BS[2] = 1, 0
    states_BSD = generator.standard_normal((4, 7, 5)).astype(np.float32)
    places_P = np.flatnonzero(mask_BS)
    rows_PD = states_BSD.reshape(1, -1, 5)[:, places_P]
    *means, is_any = session().run(
        None, {"mask": mask_BS, "padded": states_BSD, "rows": rows_PD, "places": places_P}
    )
    expected_BD = [
        states_BSD[i][mask_BS[i] > 0].mean(0) if mask_BS[i].any() else np.zeros(5) for i in range(4)
    ]
    for mean_BD in means:
        np.testing.assert_allclose(mean_BD, expected_BD, atol=1e-6)
    np.testing.assert_array_equal(is_any[:, 0], mask_BS.any(1))
