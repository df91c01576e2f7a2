"""Tests of nvembed_deploy/export/calibrate.py: what is calibrated is what the graph computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from nvembed_deploy.export.blocks import Blocks
from nvembed_deploy.export.calibrate import CompensatingQuantizer, _Inputs
from nvembed_deploy.export.calibration_texts import Calibration
from nvembed_deploy.export.formats import SCHEMES, Activations, Formats
from nvembed_deploy.export.graph import GraphOptions, author_graph
from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.export.quantized import Quantized
from nvembed_deploy.export.rotation import RotatedWeights
from nvembed_deploy.export.weight_file import write_weights
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch, Tokenizer
from tests import factories
from tests.export.test_graph import batch, run, save
from tests.export.test_linear import options_of


@pytest.fixture(scope="module")
def all_texts(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    path = factories.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    tokenizer = Tokenizer.load(path, factories.TINY.text)
    return Calibration(max_tokens=48).batches(tokenizer)


@pytest.fixture(scope="module")
def texts(all_texts: list[Batch]) -> list[Batch]:
    """What is calibrated on: every other batch."""
    return all_texts[::2]


@pytest.fixture(scope="module")
def held(all_texts: list[Batch]) -> list[dict[str, np.ndarray]]:
    """Inputs of texts that are not calibrated on."""
    return [
        {
            "input_ids": b.input_ids_BS,
            "attention_mask": b.attention_mask_BS,
            "pool_mask": b.pool_mask_BS,
        }
        for b in all_texts[1::2]
    ]


def write(weights: Weights, options: GraphOptions, folder: Path, texts: list[Batch]) -> Path:
    folder.mkdir()
    block = author_graph(weights.spec, options)
    weights = RotatedWeights(weights, kernels=options.kernels) if options.rotates else weights
    with open_linears(weights, is_folded=True) as linears:
        quantizer = CompensatingQuantizer(Blocks(linears, options.formats, texts))
        file = write_weights(folder / "model.onnx_data", block.weights, linears, quantizer)
    model = block.builder.model(block.inputs, block.output, block.opset, file.data)
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", ["fp8", "int8", "int8-weight", "int4-weight"])
def test_calibrated_graphs_are_nearer_than_nearest_ones(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], held, name: str
) -> None:
    options = options_of(name, precision=Precision.FP32)
    (tmp_path / "float").mkdir()
    (tmp_path / "nearest").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    paths = [
        save(tiny_weights, options, tmp_path / "nearest"),
        write(tiny_weights, options, tmp_path / "calibrated", texts),
    ]
    errors = []
    for path in paths:
        rows = [run(path, inputs, as_written=True) - run(plain, inputs) for inputs in held]
        errors.append(float(np.mean([np.square(row).sum(1).mean() for row in rows])))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("opset", [20, 23])
def test_graphs_with_directions_rounded_twice_are_nearer(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], held, opset: int
) -> None:
    whole = options_of("fp8", opset, precision=Precision.FP32)
    wide = replace(whole, formats=Formats(replace(SCHEMES["fp8"].linear, rank=16)))
    (tmp_path / "float").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    errors = []
    for folder, options in (("whole", whole), ("wide", wide)):
        path = write(tiny_weights, options, tmp_path / folder, texts)
        rows = [run(path, inputs, as_written=True) - run(plain, inputs) for inputs in held]
        errors.append(float(np.mean([np.square(row).sum(1).mean() for row in rows])))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("keep", "first"), [("*.q_proj", "self_attn.k_proj"), ("*.gate_proj", "mlp.up_proj")]
)
def test_directions_are_those_of_the_first_linear_that_is_rounded(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], keep: str, first: str
) -> None:
    linear = replace(SCHEMES["fp8"].linear, rank=16)
    options = GraphOptions(Precision.FP16, formats=Formats(linear, keep=(keep,)))
    names = [entry.name for entry in author_graph(tiny_weights.spec, options).weights]
    assert f"backbone.layers.0.{first}.basis" in names
    assert f"backbone.layers.0.{first.split('.', maxsplit=1)[0]}.{keep[2:]}.basis" not in names
    path = write(tiny_weights, options, tmp_path / "kept", texts)
    (tmp_path / "float").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    inputs = batch((5, 9))
    assert (run(path, inputs) * run(plain, inputs)).sum(1).min() > 0.99


def test_fp8_weights_alone_have_no_directions() -> None:
    form = replace(SCHEMES["fp8"].linear, activations=Activations.FLOAT, rank=32)
    found = Formats(form).of("backbone.layers.0.mlp.up_proj", 4096)
    assert found is not None
    assert found.rank == 0


def test_directions_are_found_once_for_all_that_read_an_input(
    tiny_weights: Weights, texts: list[Batch]
) -> None:
    linear = replace(SCHEMES["fp8"].linear, rank=16)
    block = author_graph(tiny_weights.spec, GraphOptions(formats=Formats(linear)))
    bases = {entry.name for entry in block.weights if entry.name.endswith(".basis")}
    of_layer = {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}
    assert {b for b in bases if ".layers.0." in b} == {
        f"backbone.layers.0.{name}.basis" for name in of_layer
    }
    with open_linears(tiny_weights, is_folded=True) as linears:
        quantizer = CompensatingQuantizer(Blocks(linears, Formats(linear), texts))
        names = ("backbone.layers.0.self_attn." + name for name in ("q_proj", "k_proj", "o_proj"))
        query_IK, key_IK, out_IK = (quantizer(name).basis_IK for name in names)
    assert query_IK is not None
    assert key_IK is not None
    assert out_IK is not None
    np.testing.assert_array_equal(query_IK, key_IK)
    assert np.abs(query_IK - out_IK).max() > 0.01


@pytest.mark.parametrize("rank", [0, 16])
def test_the_same_texts_give_the_same_codes(
    tiny_weights: Weights, texts: list[Batch], rank: int
) -> None:
    linear = replace(SCHEMES["fp8"].linear, rank=rank)

    def codes() -> list[Quantized]:
        with open_linears(tiny_weights, is_folded=True) as linears:
            quantizer = CompensatingQuantizer(Blocks(linears, Formats(linear), texts))
            names = ("backbone.layers.0.mlp.down_proj", "pooler.values")
            return [quantizer(name) for name in names]

    for first, second in zip(codes(), codes(), strict=True):
        np.testing.assert_array_equal(first.codes_OI.view(np.uint8), second.codes_OI.view(np.uint8))
        np.testing.assert_array_equal(first.scale_OG, second.scale_OG)


def test_padding_does_not_change_the_codes(tiny_weights: Weights, texts: list[Batch]) -> None:
    def widened(b: Batch) -> Batch:
        arrays = (b.input_ids_BS, b.attention_mask_BS, b.pool_mask_BS)
        return Batch(*(np.pad(array, ((0, 0), (0, 5))) for array in arrays))

    rounded = []
    for batches in (texts, [widened(b) for b in texts]):
        with open_linears(tiny_weights, is_folded=True) as linears:
            quantizer = CompensatingQuantizer(
                Blocks(linears, Formats(SCHEMES["int8"].linear), batches)
            )
            rounded.append(quantizer("backbone.layers.2.mlp.gate_proj").codes_OI.astype(int))
    assert (rounded[0] != rounded[1]).mean() < 0.02  # ties fall by float32 rounding


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_tokens_whose_embedding_is_zero_are_calibrated_on_like_others(
    tiny_weights: Weights, texts: list[Batch], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As that of a padding token often is, which may be BOS or EOS too: it is in every text."""
    embed, linear = Weights.embed, replace(SCHEMES[name].linear, rank=16 * (name == "fp8"))
    monkeypatch.setattr(Weights, "embed", lambda w, ids: embed(w, ids) * (ids != 2)[..., None])
    with open_linears(tiny_weights, is_folded=True) as linears:
        quantizer = CompensatingQuantizer(Blocks(linears, Formats(linear), texts))
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            rounded_OI = quantizer(f"backbone.layers.0.{part}").dequantize()
            assert 0 < np.square(rounded_OI).mean() < 1


def test_static_ranges_are_in_the_graph_and_work(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], held
) -> None:
    static = replace(SCHEMES["int8"].linear, activations=Activations.STATIC)
    options = GraphOptions(Precision.FP16, formats=Formats(static))
    path = write(tiny_weights, options, tmp_path / "static", texts)
    (tmp_path / "float").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    for inputs in held:
        assert (run(path, inputs) * run(plain, inputs)).sum(1).min() >= 0.95
    kinds = [n.op_type for n in author_graph(factories.TINY, options).builder.nodes]
    assert "ReduceMax" not in kinds


def test_kept_linears_stay_float_and_the_rest_is_calibrated_around_them(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch]
) -> None:
    options = options_of("int8", precision=Precision.FP32)
    options = replace(options, formats=replace(options.formats, keep=("*down_proj", "pooler.*")))
    path = write(tiny_weights, options, tmp_path / "kept", texts)
    assert np.isfinite(run(path, batch((5, 9)))).all()


def test_rounding_one_linear_does_not_use_up_what_another_reads() -> None:
    inputs = _Inputs()
    inputs.see("layer.gate_proj", torch.ones(2, 3), torch.ones(2, 1))
    inputs.take_energy("layer.gate_proj").zero_()
    assert torch.equal(inputs.take_energy("layer.up_proj"), torch.full((3, 3), 2.0))
