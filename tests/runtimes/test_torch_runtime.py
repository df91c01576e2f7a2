"""Tests of opening the packed model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import ArtifactError, HardwareError, InputError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.spec import Precision

TEXTS = ["a cat", "", "then there was another one " * 20, "🦀"]
LONG = 2


def embed(path: Path, runtime: str, **options) -> np.ndarray:
    with load_encoder(path, runtime, options=RuntimeOptions(device="cpu", **options)) as encoder:
        return encoder.encode(TEXTS, instruction="Find the animal")


def test_it_is_the_reference(tiny_checkpoint: Path):
    np.testing.assert_allclose(
        embed(tiny_checkpoint, "torch"), embed(tiny_checkpoint, "reference"), atol=2e-6
    )


def test_bfloat16_is_near(tiny_checkpoint: Path):
    rows_ND = embed(tiny_checkpoint, "torch", dtype=Precision.BF16)
    cosine_N = (rows_ND * embed(tiny_checkpoint, "reference")).sum(1)
    assert 0 < 1 - cosine_N.min() < 1e-3


def test_fp8_is_refused_without_tensor_cores(tiny_checkpoint: Path):
    with pytest.raises(HardwareError, match=r"fp8=True was given, .* SM 8\.9"):
        embed(tiny_checkpoint, "torch", fp8=True)


def export(checkpoint: Path, out: Path, **values: object) -> Path:
    run_export(plan_export(checkpoint, load_recipe(None, values)), out)
    return out


@pytest.mark.parametrize("pooler", ["folded", "faithful"])
def test_an_artifact_is_its_checkpoint(tiny_checkpoint: Path, tmp_path: Path, pooler: str):
    artifact = export(tiny_checkpoint, tmp_path / "out", precision="fp32", pooler=pooler)
    np.testing.assert_allclose(embed(artifact, "torch"), embed(tiny_checkpoint, "torch"), atol=2e-6)


@pytest.mark.parametrize(
    ("values", "tensor"),
    [
        ({"precision": "int8"}, "weight_t"),
        ({"precision": "int4-weight", "keep": ["pooler.*"]}, "weight_t"),
        ({"precision": "fp8", "rotate": True}, "pooler.unrotate.weight_t"),
        ({"precision": "fp8", "activations": "float"}, "inputs are not rounded"),
    ],
)
def test_other_quantised_linears_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, values: dict[str, object], tensor: str
):
    artifact = export(tiny_checkpoint, tmp_path / "out", rounding="nearest", **values)
    with pytest.raises(ArtifactError, match=f"does not compute: it.*{tensor}"):
        embed(artifact, "torch")


def test_fp8_linears_ask_for_tensor_cores(tiny_checkpoint: Path, tmp_path: Path):
    artifact = export(tiny_checkpoint, tmp_path / "out", precision="fp8", rounding="nearest")
    with pytest.raises(HardwareError, match=r"has FP8 linears, and cpu .* SM 8\.9") as caught:
        embed(artifact, "torch")
    assert 'runtime="onnx"' in caught.value.fix


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("keep", [[], ["*.k_proj", "*.layers.1.*"]], ids=["all", "some kept"])
def test_an_fp8_artifact_is_computed_with_its_own_codes(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: list[str],
    rank: int,
):
    """Its products are those of tensor cores by float32 arithmetic here: see `Fp8Linear`."""
    values = {"precision": "fp8", "keep": keep, "fp8_rank": rank, "calibration_texts": 16}
    artifact = export(tiny_checkpoint, tmp_path / "out", **values)
    monkeypatch.setattr("nvembed_deploy.runtimes.torch_runtime.check_fp8", lambda *_: None)
    got, graph = embed(artifact, "torch"), embed(artifact, "onnx")
    exact = embed(tiny_checkpoint, "torch")
    away_N, between_N = (1 - (rows * graph).sum(1) for rows in (exact, got))
    assert (between_N < away_N).all()
    # The graph is in float16: where that moves a value over an edge of E4M3's steps, a short text
    # shows it; in a long one such steps cancel out, and what is left is what both have rounded
    # (with directions rounded twice half as much, while the steps stay).
    assert between_N[LONG] < away_N[LONG] / (4 if rank else 8)


def test_the_reference_runs_checkpoints_only(tiny_artifact: Path):
    with pytest.raises(ArtifactError, match="runs a checkpoint"):
        embed(tiny_artifact, "reference")


@pytest.mark.parametrize("runtime", ["torch", "reference"])
def test_a_closed_encoder_says_so(tiny_checkpoint: Path, runtime: str) -> None:
    encoder = load_encoder(tiny_checkpoint, runtime, device="cpu")
    encoder.close()
    with pytest.raises(InputError, match="is closed"):
        encoder.encode(["a"])
    assert encoder.runtime.device == "cpu"


@pytest.mark.parametrize("device", ["meta", "privateuseone", "CPU"])
def test_a_device_that_computes_nothing_is_refused(tiny_checkpoint: Path, device: str) -> None:
    with pytest.raises(HardwareError, match=f"torch cannot use device '{device}'"):
        load_encoder(tiny_checkpoint, "torch", device=device)
