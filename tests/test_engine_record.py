"""Tests of nvembed_deploy/engine_record.py: profiles that make sense, records that survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.engine_record import EngineFacts, EngineRecord, Flavour, Profile, Shape

PROFILE = Profile("latency", Shape(1, 2), Shape(1, 128), Shape(8, 512))
RECORD = EngineRecord(
    flavour=Flavour.RTX,
    version="1.7.1",
    targets=("sm89", "sm120"),
    profiles=(PROFILE,),
    facts=EngineFacts(fused_attention=3, linears={"fp16": 18}, kernels=50),
    seconds=1.5,
    options={"strip_weights": True},
)


def test_a_record_survives_json() -> None:
    assert EngineRecord.from_dict(json.loads(json.dumps(RECORD.to_dict()))) == RECORD


def test_a_record_from_before_gpus_had_names_is_read() -> None:
    data = RECORD.to_dict()
    del data["gpu"]
    assert EngineRecord.from_dict(data).gpu is None


def test_the_summary_names_target_kernels_and_profiles() -> None:
    for part in ("tensorrt-rtx 1.7.1", "sm89, sm120", "3 fused", "18 fp16", "up to 8x512"):
        assert part in RECORD.summary


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {}}, "--engine tensorrt-rtx --target sm89,sm120 --overwrite"),
        ({"options": {}, "targets": ("portable",)}, "--engine tensorrt-rtx --overwrite"),
        (
            {"flavour": Flavour.TENSORRT, "targets": ("sm90",), "gpu": "NVIDIA H200"},
            "--engine tensorrt --strip-weights --overwrite, on NVIDIA H200",
        ),
        (
            {"flavour": Flavour.TENSORRT, "targets": ("sm90",), "options": {}},
            "--engine tensorrt --overwrite, on sm90",
        ),
    ],
)
def test_the_command_that_makes_an_engine_anew_makes_that_one(
    change: dict[str, Any], said: str
) -> None:
    artifact = Path("my artifact")
    expected = f"nvembed-deploy compile 'my artifact' {said}"
    assert replace(RECORD, **change).compile_command(artifact) == expected


def test_what_only_a_recipe_asks_for_no_command_makes_anew() -> None:
    wide = replace(RECORD, options={"hardware_compatible": "ampere_plus"})
    assert wide.compile_command(Path("artifact")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min", [1]),
        ("min", "1x2"),
        ("opt", [1, 600]),
        ("max", [0, 512]),
        ("max", [True, 512]),
        ("max", [8.0, 512]),
        ("name", ""),
        ("name", 3),
        ("more", 1),
    ],
)
def test_a_profile_that_no_batch_could_meet_is_refused(key: str, value: object) -> None:
    data = {"name": "latency", "min": [1, 2], "opt": [1, 128], "max": [8, 512]}
    assert Profile.from_dict(data) == PROFILE
    with pytest.raises(ValueError, match="profile"):
        Profile.from_dict(data | {key: value})


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 1), True), ((8, 512), True), ((9, 1), False), ((1, 513), False)],
)
def test_a_profile_holds_what_can_be_padded_into_it(shape: tuple[int, int], fits: bool) -> None:
    assert PROFILE.holds(Shape(*shape)) == fits


@pytest.mark.parametrize(
    "wrong", [{"flavour": "x"}, {"profiles": [{}]}, {"facts": {"a": 1}}, {"unknown": 1}]
)
def test_a_damaged_record_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        EngineRecord.from_dict(RECORD.to_dict() | wrong)
