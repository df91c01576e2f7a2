"""Tests of nvembed_deploy/export/cpu_linear.py: the CPU's 8-bit products, run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.formats import SCHEMES, Formats, Kernels
from nvembed_deploy.export.graph import GraphOptions, author_blocks, author_graph
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch
from tests import factories
from tests.export.test_calibrate import all_texts, held, texts, write
from tests.export.test_graph import batch, run, save
from tests.export.written import weight_file

__all__ = ["all_texts", "held", "texts"]
BY_ROW = Formats(SCHEMES["int8-cpu"].linear)
OPTIONS = GraphOptions(
    Precision.FP32,
    formats=Formats(SCHEMES["int8-cpu"].linear, per_token=("*.down_proj",)),
    rotates=True,
    kernels=Kernels.CPU,
)


def test_values_are_those_of_the_standard_graph(tmp_path: Path, tiny_weights: Weights) -> None:
    """A layer of both: the same codes, multiplied exactly by either kernel."""
    generator, outputs = np.random.default_rng(0), []
    hidden_BSD = generator.standard_normal((2, 9, 64)).astype(np.float32)
    for kernels in Kernels:
        folder = tmp_path / kernels.value
        folder.mkdir()
        options = replace(OPTIONS, formats=BY_ROW, rotates=False, kernels=kernels)
        file = weight_file(tiny_weights, options, folder)
        layer = author_blocks(factories.TINY, options)[1]
        model = layer.builder.model(layer.inputs, layer.output, layer.opset, file.data)
        ir.save(model, folder / "layer.onnx")
        is_for_cpu = kernels is Kernels.CPU
        feed = {"hidden": hidden_BSD, "attention_mask": np.ones((2, 9), np.int64)}
        # As written, or ONNX Runtime makes the standard one's products saturate (onnx_session.py).
        outputs.append(
            run(folder / "layer.onnx", feed, as_written=not is_for_cpu, is_for_cpu=is_for_cpu)
        )
    assert np.abs(outputs[0] - hidden_BSD).max() > 0.1
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


@pytest.mark.parametrize("per_token", ["*.down_proj", "*.q_proj", "*.k_proj"])
def test_calibrated_static_ranges_stay_near_the_float_graph(
    tmp_path: Path,
    tiny_weights: Weights,
    texts: list[Batch],
    held: list[dict[str, np.ndarray]],
    per_token: str,
) -> None:
    """Also where one of the linears that read an input has a range per token, and others none."""
    (tmp_path / "float").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    options = replace(OPTIONS, formats=replace(OPTIONS.formats, per_token=(per_token,)))
    path = write(tiny_weights, options, tmp_path / "cpu", texts)
    onnx.checker.check_model(str(path), full_check=True)
    cosines = [(run(path, x, is_for_cpu=True) * run(plain, x)).sum(1) for x in held]
    assert np.concatenate(cosines).min() >= 0.998


def test_a_batch_of_which_nothing_is_pooled_gives_zeros(
    tmp_path: Path, tiny_weights: Weights
) -> None:
    """The last layer's linears then have no row at all."""
    path = save(tiny_weights, replace(OPTIONS, formats=BY_ROW), tmp_path)
    inputs = batch((5, 9))
    inputs["pool_mask"][:] = 0
    np.testing.assert_array_equal(run(path, inputs, is_for_cpu=True), 0)


def test_each_product_has_an_unsigned_left_side(tmp_path: Path, tiny_weights: Weights) -> None:
    """Signed by signed is 36 times slower in ONNX Runtime 1.32."""
    model = onnx.load(
        str(save(tiny_weights, replace(OPTIONS, formats=BY_ROW), tmp_path)),
        load_external_data=False,
    )
    zeros = {t.name: t.data_type for t in model.graph.initializer if t.name.startswith("zero_")}
    assert zeros == {"zero_uint8": onnx.TensorProto.UINT8}
    products = [n for n in model.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert {n.input[4] for n in products} == {"zero_uint8"}
    assert len(products) == 7 * factories.TINY.backbone.num_layers + 4


def test_only_named_linears_have_a_range_per_token() -> None:
    block = author_graph(factories.TINY, OPTIONS)
    reduced = [n for n in block.builder.nodes if n.op_type == "ReduceMax"]
    layers = factories.TINY.backbone.num_layers
    assert len(reduced) == layers
    scales = [e.name for e in block.weights if e.name.endswith(".input_scale")]
    # q, k and v share one, gate and up another, o_proj has one; and the pooler's four.
    assert len(scales) == 3 * layers + 4


@pytest.mark.parametrize("formats", [OPTIONS.formats, BY_ROW])
def test_codes_and_ranges_are_moved_and_no_floats(formats: Formats) -> None:
    """Between rows of kept tokens and padded slots a token is a byte a value."""
    block = author_graph(factories.TINY, replace(OPTIONS, formats=formats))
    made_by = {str(node.outputs[0].name): node for node in block.builder.nodes}

    def origin(value: ir.Value | None) -> str:
        node = made_by[str(value.name)] if value is not None else None
        if node is not None and node.op_type == "Reshape":
            return origin(node.inputs[0])
        return node.op_type if node is not None else ""

    moved = [
        origin(node.inputs[0])
        for node in block.builder.nodes
        if node.op_type == "Gather" and str(node.name).startswith("layers.")
    ]
    layers = factories.TINY.backbone.num_layers
    assert moved.count("QuantizeLinear") == 2 * layers
    assert moved.count("Max") == (2 * layers if formats is BY_ROW else 0)
    assert moved.count("Add") == 1  # the last layer's states, of pooled tokens
    assert set(moved) <= {"QuantizeLinear", "Max", "Add"}


def test_the_embedding_table_is_half_as_large() -> None:
    entries = {e.name: e for e in author_graph(factories.TINY, OPTIONS).weights}
    assert entries["backbone.embed_tokens.weight"].dtype.name == "FLOAT16"


@pytest.mark.parametrize(
    ("values", "named"),
    [({"opset": 20}, "opset 20"), ({"engine": {"flavour": "tensorrt-rtx"}}, "an engine")],
)
def test_what_the_cpu_form_cannot_be_is_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        load_recipe(None, {"precision": "int8-cpu", **values})


def test_without_texts_every_token_has_a_range_of_its_own() -> None:
    recipe = load_recipe(None, {"precision": "int8-cpu", "rounding": "nearest"})
    assert recipe.formats.per_token == ("*",)
    assert not recipe.measures_ranges
    assert load_recipe(None, {"precision": "int8-cpu"}).measures_ranges
