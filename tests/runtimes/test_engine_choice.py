"""Tests of runtimes/engine_choice.py: which plan runs where, by its record alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvembed_deploy.engine_record import EngineFacts, EngineRecord, Flavour, Profile, Shape
from nvembed_deploy.runtimes.engine_choice import Host, choose_engine, explain, why_not

RTX_GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
TRT = EngineRecord(
    flavour=Flavour.TENSORRT,
    version="11.4.0.106",
    targets=("sm90",),
    profiles=(Profile("all", Shape(1, 2), Shape(1, 8), Shape(8, 64)),),
    facts=EngineFacts(fused_attention=1, linears={}, kernels=1),
    seconds=1.0,
)
RTX = replace(TRT, flavour=Flavour.RTX, version="1.7.1.116", targets=("sm89", "sm120"))
H200 = Host(Flavour.TENSORRT, "11.4.0.106", "sm90")
L4 = Host(Flavour.RTX, "1.7.1.116", "sm89", RTX_GPUS)


def test_an_engine_fits_where_flavour_version_and_gpu_are_the_same() -> None:
    assert why_not(TRT, H200) is None
    assert why_not(RTX, L4) is None


@pytest.mark.parametrize(
    ("record", "host", "reason"),
    [
        (RTX, H200, "is of tensorrt-rtx"),
        (TRT, replace(H200, version="11.4.1.1"), "was compiled by version 11.4.0.106"),
        (RTX, replace(L4, version="1.8.0.1"), "was compiled by version 1.7.1.116"),
        (TRT, replace(H200, target="sm100"), "is for sm90"),
        (RTX, replace(L4, target="sm86"), "is for sm89, sm120"),
    ],
)
def test_each_mismatch_is_named(record: EngineRecord, host: Host, reason: str) -> None:
    assert why_not(record, host) == reason
    assert choose_engine({"a.plan": record}, host) is None
    assert explain({"a.plan": record}, host) == f"a.plan {reason}"


def test_a_portable_plan_runs_from_ampere_on() -> None:
    portable = replace(RTX, targets=("portable",))
    assert why_not(portable, L4) is None
    assert why_not(portable, replace(L4, target="sm120")) is None
    assert why_not(portable, replace(L4, target="sm75")) == "is for sm80 and later"


def test_a_portable_plan_in_fp8_runs_from_ada_on() -> None:
    """Its own text says accelerators={sm89}: TensorRT for RTX builds it for no older one."""
    facts = replace(RTX.facts, linears={"fp16": 69, "fp8": 36})
    portable = replace(RTX, targets=("portable",), facts=facts)
    assert why_not(portable, L4) is None
    assert why_not(portable, replace(L4, target="sm121")) is None
    for target in ("sm80", "sm86"):
        assert why_not(portable, replace(L4, target=target)) == "is for sm89 and later"
    rounded = replace(portable, facts=replace(facts, linears={"int8": 36}))
    assert why_not(rounded, replace(L4, target="sm86")) is None


@pytest.mark.parametrize(
    ("built", "version", "fits"),
    [
        *((TRT.version, "11.4.0.106", True), (TRT.version, "11.10.0.1", True)),
        *((TRT.version, "12.0.0.1", False), (TRT.version, "11.3.0.9", False)),
        *(("10.15.1.29", TRT.version, True), ("9.3.0.1", TRT.version, False)),
    ],
)
def test_a_version_compatible_plan_runs_on_the_later_versions_that_nvidia_names(
    built: str, version: str, fits: bool
) -> None:
    record = replace(TRT, version=built, options={"version_compatible": True})
    assert (why_not(record, replace(H200, version=version)) is None) == fits


def test_a_plan_for_ampere_and_later_runs_on_later_gpus() -> None:
    record = replace(TRT, targets=("sm80",), options={"hardware_compatible": "ampere_plus"})
    assert why_not(record, H200) is None
    assert why_not(record, replace(H200, target="sm75")) == "is for sm80"
    same = replace(record, options={"hardware_compatible": "same_compute_capability"})
    assert why_not(same, H200) == "is for sm80"


def test_a_plan_that_was_tuned_on_another_model_is_left() -> None:
    """SM90 are H100, H200 and GH200; a plan that records no model is taken, as it always was."""
    here = replace(H200, gpu="NVIDIA H200")
    h100, h200 = (replace(TRT, gpu=f"NVIDIA {name}") for name in ("H100 PCIe", "H200"))
    assert why_not(h100, here) == "was tuned on NVIDIA H100 PCIe"
    assert why_not(h200, here) is None
    assert why_not(TRT, here) is None
    assert why_not(h100, H200) is None
    assert choose_engine({"unknown": TRT, "other": h100, "own": h200}, here) == "own"
    assert str(here) == "tensorrt 11.4.0.106 on sm90 (NVIDIA H200)"


def test_the_engine_made_for_fewest_gpus_is_taken() -> None:
    engines = {
        "portable": replace(RTX, targets=("portable",)),
        "two": RTX,
        "one": replace(RTX, targets=("sm89",)),
    }
    assert choose_engine(engines, L4) == "one"
    assert choose_engine(engines, replace(L4, target="sm120")) == "two"
    assert choose_engine(engines, replace(L4, target="sm86")) == "portable"
    wide = replace(TRT, options={"hardware_compatible": "ampere_plus"})
    assert choose_engine({"wide": wide, "own": TRT}, H200) == "own"


def test_a_gpu_that_the_product_does_not_know_is_told() -> None:
    assert not replace(L4, target="sm90").is_supported
    assert H200.is_supported
    assert explain({}, H200) == "it holds no engine"
    assert str(H200) == "tensorrt 11.4.0.106 on sm90"
