"""Tests of runtimes/engine_here.py: "auto" takes an engine only where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nvembed_deploy.artifact import open_artifact
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.runtimes import RuntimeOptions, engine_here, load_encoder
from nvembed_deploy.runtimes.cuda_memory import Gpu
from nvembed_deploy.runtimes.engine_here import flavour_here
from tests.runtimes.host_gpu import HostCuda

GPU = RuntimeOptions()


@pytest.fixture
def an_l4(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose driver shows an SM89."""
    pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    monkeypatch.setattr(engine_here, "_gpu", lambda _: ("sm89", "NVIDIA L4"))
    yield


def test_an_engine_that_fits_is_taken(rtx_artifact: Path, an_l4: None) -> None:
    assert flavour_here(open_artifact(rtx_artifact), GPU) is Flavour.RTX
    assert flavour_here(open_artifact(rtx_artifact), replace(GPU, device="cuda:0")) is Flavour.RTX


@pytest.mark.parametrize(
    "options", [RuntimeOptions(device="cpu"), RuntimeOptions(providers=("CPUExecutionProvider",))]
)
def test_another_device_is_left_to_the_other_runtimes(
    rtx_artifact: Path, an_l4: None, options: RuntimeOptions
) -> None:
    assert flavour_here(open_artifact(rtx_artifact), options) is None


@pytest.mark.parametrize("target", ["sm86", "sm90", None])
def test_an_engine_for_another_gpu_is_not_taken(
    rtx_artifact: Path, an_l4: None, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    gpu = (target, "NVIDIA A10") if target else None
    monkeypatch.setattr(engine_here, "_gpu", lambda _: gpu)
    assert flavour_here(open_artifact(rtx_artifact), GPU) is None


def test_the_gpu_that_was_asked_for_is_asked(
    rtx_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {0: (9, 0), 1: (8, 9)}
    monkeypatch.setattr(
        engine_here, "Gpu", lambda index: Gpu(index, HostCuda(capability=capabilities[index]))
    )
    artifact = open_artifact(rtx_artifact)
    assert flavour_here(artifact, replace(GPU, device="cuda:0")) is None
    assert flavour_here(artifact, replace(GPU, device="cuda:1")) is Flavour.RTX


def test_an_artifact_without_an_engine_asks_for_no_gpu(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_here, "_gpu", lambda _: pytest.fail("asked"))
    assert flavour_here(open_artifact(tiny_artifact), GPU) is None


def test_auto_without_a_gpu_is_onnx_although_there_is_an_engine(rtx_artifact: Path) -> None:
    with load_encoder(rtx_artifact, device="cpu") as encoder:
        assert encoder.runtime.name == "onnx"
