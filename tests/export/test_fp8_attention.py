"""Tests of nvembed_deploy/export/fp8_attention.py: the numbers, and the kernel it becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import read_manifest
from nvembed_deploy.engine_record import Flavour, Profile, Shape
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.calibration_record import CalibrationRecord
from nvembed_deploy.export.engine import build_engine
from nvembed_deploy.export.engine_options import EngineOptions, GraphFacts, check_engine
from nvembed_deploy.export.engine_profiles import default_profiles
from nvembed_deploy.export.formats import SCHEMES, Code, Formats
from nvembed_deploy.export.graph import GraphOptions
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch
from tests.export.test_calibrate import all_texts, held, texts, write
from tests.export.test_engine import INPUTS, RTX, SPEC, checkpoint, link
from tests.export.test_graph import run, save

__all__ = ["all_texts", "checkpoint", "held", "texts"]
LINEARS_ONLY = GraphOptions(Precision.FP16, formats=Formats(SCHEMES["fp8"].linear))
WITH_ATTENTION = GraphOptions(
    Precision.FP16, formats=Formats(SCHEMES["fp8"].linear), fp8_attention=True
)
FACTS = GraphFacts(Precision.FP16, 23, 64, Code.FP8, fp8_attention=True)


def test_it_is_near_the_float_graph_and_masks_what_is_padded(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], held: list[dict[str, np.ndarray]]
) -> None:
    (tmp_path / "float").mkdir()
    plain = save(tiny_weights, GraphOptions(), tmp_path / "float")
    path = write(tiny_weights, WITH_ATTENTION, tmp_path / "fp8", texts)
    onnx.checker.check_model(str(path), full_check=True)
    cosines = np.concatenate([(run(path, x) * run(plain, x)).sum(1) for x in held])
    assert 0.99 < cosines.min() < 1 - 1e-5
    wide = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in held[0].items()}
    # Another order of sums may turn a code.
    assert (run(path, wide) * run(path, held[0])).sum(1).min() > 0.9995


def test_attention_is_rounded_where_its_linears_are_kept(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch], held: list[dict[str, np.ndarray]]
) -> None:
    """Ranges of a linear in 16 bit are asked for before any linear of its block is rounded."""
    formats = Formats(SCHEMES["fp8"].linear, keep=("*.layers.0.*", "*.q_proj"))
    path = write(tiny_weights, replace(WITH_ATTENTION, formats=formats), tmp_path / "kept", texts)
    every = write(tiny_weights, WITH_ATTENTION, tmp_path / "none", texts)
    scales = [
        {
            t.name: float(onnx.numpy_helper.to_array(t))
            for t in onnx.load(str(p)).graph.initializer
            if t.name.endswith(".output_scale")
        }
        for p in (path, every)
    ]
    assert scales[0].keys() == scales[1].keys()
    assert scales[0] == pytest.approx(scales[1], rel=0.2)


def test_queries_keys_values_and_weights_are_rounded_and_nothing_else(
    tmp_path: Path, tiny_weights: Weights, texts: list[Batch]
) -> None:
    graphs = [
        onnx.load(str(write(tiny_weights, options, tmp_path / name, texts))).graph
        for name, options in (("linears", LINEARS_ONLY), ("attention", WITH_ATTENTION))
    ]
    rounded = [sum(n.op_type == "QuantizeLinear" for n in graph.node) for graph in graphs]
    assert rounded[1] == rounded[0] + 4 * tiny_weights.spec.backbone.num_layers
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in graphs[1].initializer}
    weights = {n.output[0] for n in graphs[1].node if n.op_type == "Softmax"}
    by_use = [
        n.input[1]
        for n in graphs[1].node
        if n.op_type == "QuantizeLinear" and n.input[0] in weights
    ]
    assert len(by_use) == tiny_weights.spec.backbone.num_layers
    assert all(np.isclose(scales[name], 1 / 448, rtol=1e-3) for name in by_use)


def test_no_value_seen_is_beyond_the_range(exported: Path) -> None:
    """The scale times 448 holds four times the largest output of calibration."""
    record = CalibrationRecord.read(exported)
    graph = onnx.load(str(exported / "model.onnx")).graph
    scales = {
        t.name.removesuffix(".output_scale"): float(onnx.numpy_helper.to_array(t))
        for t in graph.initializer
        if t.name.endswith(".output_scale")
    }
    assert len(scales) == 3 * SPEC.backbone.num_layers
    for name, scale in scales.items():
        share = SPEC.backbone.head_width**-0.5 if name.endswith("q_proj") else 1
        assert scale * 448 == pytest.approx(4 * share * record.ranges[name].output, rel=2e-3)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "fp8-attention"
    argv = ["export", str(checkpoint), str(out), "--precision", "fp8", "--fp8-attention"]
    assert main(argv) == 0
    return out


def test_its_ranges_are_used_again_without_texts(
    checkpoint: Path,
    exported: Path,
    tmp_path: Path,
) -> None:
    argv = ["export", str(checkpoint), str(tmp_path / "again"), "--precision", "fp8"]
    assert main([*argv, "--fp8-attention", "--ranges", str(exported)]) == 0
    assert read_manifest(tmp_path / "again").recipe["fp8_attention"] is True


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_the_plan_has_one_fused_kernel_a_layer(exported: Path, tmp_path: Path, target: str) -> None:
    link(exported, tmp_path)
    options, (profile, *_) = EngineOptions(Flavour.RTX, (target,)), default_profiles(512, 32)
    facts = build_engine(tmp_path, INPUTS, options, (profile,)).record.facts
    assert facts.fused_attention == SPEC.backbone.num_layers


def test_compiled_later_its_profiles_begin_at_32_tokens(exported: Path) -> None:
    argv = ["compile", str(exported), "--engine", "tensorrt-rtx", "--target", "sm89"]
    assert main(argv) == 0
    (record,) = read_manifest(exported).engines.values()
    assert {profile.min.sequence for profile in record.profiles} == {32}
    assert record.facts.fused_attention == SPEC.backbone.num_layers * len(record.profiles)


def test_what_would_not_be_fused_is_refused() -> None:
    check_engine(RTX, FACTS)
    short = EngineOptions(
        Flavour.RTX, ("sm89",), (Profile("short", Shape(1, 31), Shape(1, 64), Shape(4, 64)),)
    )
    with pytest.raises(RecipeError, match="begins at 31 tokens"):
        check_engine(short, FACTS)
    with pytest.raises(RecipeError, match="heads that are 96 wide"):
        check_engine(RTX, GraphFacts(Precision.FP16, 23, 96, Code.FP8, fp8_attention=True))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--precision", "int8"], "it needs fp8"),
        (["--precision", "fp8", "--opset", "20"], "it needs opset 23"),
        (["--precision", "fp8", "--rounding", "nearest"], "without calibration"),
        (["--precision", "fp16"], "without a precision of"),
    ],
)
def test_it_is_refused_with_what_it_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    argv = ["export", "nowhere", str(tmp_path / "out"), "--fp8-attention", *more]
    assert main(argv) == 2
    assert named in " ".join(capsys.readouterr().err.split())
