"""Tests of runtimes/engine_request.py: the engine that fits, or one compiled by another process."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.runtimes.engine_choice import Host
from nvembed_deploy.runtimes.engine_request import (
    compile_command,
    find_engine,
    visible_devices,
)
from nvembed_deploy.tensorrt_api import gpu_target, load_api

H200 = Host(Flavour.TENSORRT, "11.4.0.106", "sm90")


@pytest.fixture
def l4(rtx_artifact: Path) -> Host:
    """A machine with an L4 and the TensorRT for RTX that is installed here."""
    api = load_api(Flavour.RTX)
    return Host(Flavour.RTX, api.version, "sm89", api.targets)


def test_the_engine_that_fits_is_found(rtx_artifact: Path, l4: Host) -> None:
    artifact, name = find_engine(open_artifact(rtx_artifact), l4, RuntimeOptions(), 0)
    assert name == f"engines/tensorrt-rtx-{l4.version}-sm89.plan"
    assert artifact.path == rtx_artifact


def test_without_leave_to_compile_each_engine_says_why_it_does_not_fit(
    rtx_artifact: Path, l4: Host
) -> None:
    options = RuntimeOptions(compiles_engines=False)
    with pytest.raises(
        ArtifactError, match=r"no engine for .* on sm120: engines/.* is for sm89"
    ) as caught:
        find_engine(open_artifact(rtx_artifact), replace(l4, target="sm120"), options, 0)
    assert caught.value.fix.endswith(f"compile {rtx_artifact} --engine tensorrt-rtx --target sm120")


def test_a_gpu_that_the_product_does_not_run_on_is_refused(rtx_artifact: Path, l4: Host) -> None:
    with pytest.raises(HardwareError, match="does not run on sm90, only on sm75") as caught:
        find_engine(open_artifact(rtx_artifact), replace(l4, target="sm90"), RuntimeOptions(), 0)
    assert "runtime='tensorrt'" in caught.value.fix


def test_two_that_ask_at_once_get_one_engine_compiled_once(
    rtx_artifact: Path, l4: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Both really compile, in processes of their own: the second one waits and finds it done."""
    host, found = replace(l4, target="sm86"), []

    def ask() -> None:
        found.append(find_engine(open_artifact(rtx_artifact), host, RuntimeOptions(), 0)[1])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [f"engines/tensorrt-rtx-{l4.version}-sm86.plan"] * 2
    assert len(read_manifest(rtx_artifact).engines) == 2
    assert caplog.text.count("there already") == 1
    assert "takes minutes" in caplog.text
    open_artifact(rtx_artifact, "full")


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has a GPU")
def test_what_the_compiler_refuses_is_passed_on(rtx_artifact: Path) -> None:
    with pytest.raises(HardwareError, match="builds on the GPU that it builds for") as caught:
        find_engine(open_artifact(rtx_artifact), H200, RuntimeOptions(), 0)
    assert "--engine tensorrt-rtx" in caught.value.fix


def test_only_rtx_is_told_its_target(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "nvembed_deploy", "compile", str(tmp_path), "--engine"]
    assert compile_command(tmp_path, H200) == [*words, "tensorrt"]
    l40 = Host(Flavour.RTX, "1.7.1.116", "sm89")
    assert compile_command(tmp_path, l40) == [*words, "tensorrt-rtx", "--target", "sm89"]


@pytest.mark.parametrize(
    ("index", "visible", "expected"),
    [(1, None, "1"), (0, "3,5", "3"), (1, "3, 5", "5"), (1, "GPU-a,GPU-b", "GPU-b")],
)
def test_the_compiler_sees_the_gpu_that_was_asked_for(
    index: int, visible: str | None, expected: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_devices(index, environment) == expected
