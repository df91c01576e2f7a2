"""Tests of nvembed_deploy/export/engine_options.py: what is asked, and refused in time."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.engine_record import Flavour, Profile, Shape
from nvembed_deploy.errors import HardwareError, RecipeError
from nvembed_deploy.export.engine_options import (
    EngineOptions,
    GraphFacts,
    check_engine,
    engine_options,
)
from nvembed_deploy.export.formats import Code
from nvembed_deploy.spec import Precision
from nvembed_deploy.tensorrt_api import gpu_target
from tests.runtimes.host_gpu import HostDriver

FP16 = GraphFacts(Precision.FP16, 23, 128)
RTX = EngineOptions(Flavour.RTX)


def options(**table: Any) -> EngineOptions:
    read, mistake = engine_options({"flavour": "tensorrt-rtx", **table})
    assert mistake is None
    assert read is not None
    return read


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("sm89", ("sm89",)),
        ("SM_89, sm120,sm89", ("sm89", "sm120")),
        ("sm120,sm89", ("sm89", "sm120")),
        (["sm75", "sm121"], ("sm75", "sm121")),
        ("portable", ()),
    ],
)
def test_targets_are_read_as_people_write_them(given: object, targets: tuple[str, ...]) -> None:
    assert options(targets=given).targets == targets


def test_a_table_of_everything_is_read() -> None:
    profile = {"name": "all", "min": [1, 2], "opt": [8, 64], "max": [16, 4096]}
    read = options(profiles=[profile], hardware_compatible="ampere_plus", strip_weights=True)
    assert read.profiles == (Profile("all", Shape(1, 2), Shape(8, 64), Shape(16, 4096)),)
    assert read.flags.hardware_compatible == "ampere_plus"
    assert read.flags.strip_weights
    assert engine_options("tensorrt-rtx") == (RTX, None)


def test_every_mistake_is_listed_at_once() -> None:
    table = {
        "targets": "x1",
        "profiles": [],
        "profile_from": 3,
        "strip_weights": 1,
        "hardware_compatible": "all",
        "colour": 1,
    }
    read, mistake = engine_options(table)
    assert read is None
    for part in (*table, "without flavour (--engine)", "both profiles and profile_from"):
        assert part in (mistake or "")


@pytest.mark.parametrize(
    ("targets", "change", "problem", "fix"),
    [
        ("sm90", {}, "does not build for sm90", "--engine tensorrt"),
        ("sm89,sm999", {}, "sm999", "--engine tensorrt"),
        ("sm86,sm89", {"code": Code.FP8}, "sm86 cannot compute in FP8", "--precision int8"),
        ("sm75", {"code": Code.INT4}, "no kernels for 4-bit", "--precision int8-weight"),
        ("sm75", {"precision": Precision.BF16}, "sm75 cannot multiply", "--precision fp16"),
        ("sm75", {"precision": Precision.FP32, "opset": 20}, "sm75 cannot", "--precision fp16"),
        ("sm89", {"precision": Precision.FP32}, "computes in fp32", "--opset 20"),
        ("sm89", {"head_width": 512}, "512 wide", "--opset 20"),
        ("sm89", {"head_width": 100}, "100 wide", "--opset 20"),
    ],
)
def test_what_would_fail_is_refused_with_its_remedy(
    targets: str, change: dict[str, Any], problem: str, fix: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(problem)) as caught:
        check_engine(options(targets=targets), replace(FP16, **change))
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "name", ["strip_weights", "version_compatible", "hardware_compatible", "timing_cache"]
)
def test_what_only_full_tensorrt_has_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} is not for TensorRT for RTX"):
        check_engine(replace(RTX, **{name: "ampere_plus"}), FP16)


@pytest.mark.parametrize(
    ("targets", "change"),
    [
        ("sm75,sm121", {}),
        ("portable", {"code": Code.FP8}),
        ("sm89,sm120", {"code": Code.FP8}),
        ("sm80", {"precision": Precision.BF16}),
        ("sm86", {"precision": Precision.FP32, "opset": 20, "head_width": 512}),
        ("sm75", {"code": Code.INT8}),
        ("sm80", {"code": Code.INT4}),
    ],
)
def test_what_builds_is_not_refused(targets: str, change: dict[str, Any]) -> None:
    check_engine(options(targets=targets), replace(FP16, **change))


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has an NVIDIA GPU")
def test_full_tensorrt_without_a_gpu_is_refused() -> None:
    with pytest.raises(HardwareError, match="none here") as caught:
        check_engine(EngineOptions(Flavour.TENSORRT), FP16)
    assert "tensorrt-rtx" in caught.value.fix


def test_a_plan_with_a_lean_runtime_holds_its_weights() -> None:
    """NVIDIA's page on version compatibility: that runtime does not refit."""
    both = EngineOptions(Flavour.TENSORRT, strip_weights=True, version_compatible=True)
    with pytest.raises(RecipeError, match="do not go together"):
        check_engine(both, FP16)


def test_a_file_of_timings_in_no_folder_is_refused_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: HostDriver())
    check_engine(EngineOptions(Flavour.TENSORRT, timing_cache="timings"), FP16)
    with pytest.raises(RecipeError, match="in a folder that is not there"):
        check_engine(EngineOptions(Flavour.TENSORRT, timing_cache=str(tmp_path / "no" / "t")), FP16)
