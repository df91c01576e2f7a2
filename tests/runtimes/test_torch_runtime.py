"""Tests of opening the packed model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.export.pipeline import plan_export, run_export
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.spec import Precision

TEXTS = ["a cat", "", "then there was another one " * 20, "🦀"]


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
    with pytest.raises(HardwareError, match=r"FP8 products .* SM 8\.9"):
        embed(tiny_checkpoint, "torch", fp8=True)


def export(checkpoint: Path, out: Path, **values: str) -> Path:
    run_export(plan_export(checkpoint, load_recipe(None, values)), out)
    return out


@pytest.mark.parametrize("pooler", ["folded", "faithful"])
def test_an_artifact_is_its_checkpoint(tiny_checkpoint: Path, tmp_path: Path, pooler: str):
    artifact = export(tiny_checkpoint, tmp_path / "out", precision="fp32", pooler=pooler)
    np.testing.assert_allclose(embed(artifact, "torch"), embed(tiny_checkpoint, "torch"), atol=2e-6)


def test_quantised_linears_are_refused(tiny_checkpoint: Path, tmp_path: Path):
    artifact = export(tiny_checkpoint, tmp_path / "out", precision="int8", rounding="nearest")
    with pytest.raises(ArtifactError, match="quantised linears"):
        embed(artifact, "torch")


def test_the_reference_runs_checkpoints_only(tiny_artifact: Path):
    with pytest.raises(ArtifactError, match="runs a checkpoint"):
        embed(tiny_artifact, "reference")
