"""Tests of nvembed_deploy/export/engine.py: real plans, real deaths.

They compile with TensorRT for RTX, which needs no GPU for that.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.engine_record import EngineFacts, Flavour, Profile, Shape
from nvembed_deploy.errors import ArtifactError, HardwareError, MissingPackageError, RecipeError
from nvembed_deploy.export.engine import build_engine, engine_name, probe
from nvembed_deploy.export.engine_options import EngineOptions, GraphFacts
from nvembed_deploy.spec import ModelSpec, PoolerSpec, Precision
from nvembed_deploy.tensorfile import open_tensors
from tests.factories import TINY, write_released
from tests.full_disk import files_up_to
from tests.runtimes.host_gpu import HostDriver
from tests.tensorrt_names import empty_library

pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")

SPEC: ModelSpec = replace(
    TINY,
    backbone=replace(
        TINY.backbone,
        hidden_size=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        intermediate_size=512,
    ),
    pooler=PoolerSpec(num_latents=16, num_heads=2, head_width=256, feed_width=1024),
)
"""Heads of 64: as narrow as trained models have them."""
SHORT = Profile("short", Shape(1, 2), Shape(2, 32), Shape(4, 64))
INPUTS = ("input_ids", "attention_mask", "pool_mask")
RTX = EngineOptions(Flavour.RTX, ("sm89",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("engine") / "checkpoint", SPEC)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """Return an artifact with an engine, made by the command line as a user does."""
    out = checkpoint.parent / "artifact"
    argv = ["export", str(checkpoint), str(out), "--engine", "tensorrt-rtx"]
    assert main([*argv, "--target", "sm89,sm120"]) == 0
    return out


def test_the_artifact_holds_the_plan_and_says_what_it_is(exported: Path) -> None:
    manifest = open_artifact(exported, "full").manifest
    ((name, record),) = manifest.engines.items()
    assert name == f"engines/tensorrt-rtx-{record.version}-sm89-sm120.plan"
    assert manifest.files[name].bytes == (exported / name).stat().st_size > 1 << 20
    assert (exported / name).read_bytes()[:4] == b"vtrt"
    assert [p.name for p in record.profiles] == ["latency", "throughput", "long"]
    assert list((exported / "engines").iterdir()) == [exported / name]


def test_every_layers_attention_is_one_kernel_in_every_profile(exported: Path) -> None:
    (record,) = read_manifest(exported).engines.values()
    assert record.facts.fused_attention == SPEC.backbone.num_layers * len(record.profiles)


def test_query_key_and_value_are_one_product(exported: Path) -> None:
    (record,) = read_manifest(exported).engines.values()
    linears = sum(read_manifest(exported).linears.values())
    per_profile = record.facts.linears["fp16"] / len(record.profiles)
    # One product for q, k and v, one for gate and up.
    assert per_profile < linears - 2 * SPEC.backbone.num_layers


@pytest.mark.parametrize(
    ("precision", "target", "code"),
    [("fp8", "sm89", "fp8"), ("fp8", "sm120", "fp8"), ("int8", "sm89", "int8")],
)
def test_rounded_linears_are_products_of_8_bits(
    checkpoint: Path, tmp_path: Path, precision: str, target: str, code: str
) -> None:
    """None falls back to 16 bits; q, k and v may be one product, and gate and up."""
    facts, layers = build_rounded(checkpoint, tmp_path, precision, target), SPEC.backbone.num_layers
    assert 4 * layers + 4 <= facts.linears[code] <= 7 * layers + 4  # the pooler has four
    assert facts.linears["fp16"] <= layers + 2  # rotations, and the mean of the values
    assert facts.fused_attention == layers


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_directions_rounded_twice_leave_one_product_in_fp8(
    checkpoint: Path, tmp_path: Path, target: str
) -> None:
    """Each linear's; before each input that they read are two small ones."""
    recipe, layers = tmp_path / "recipe.toml", SPEC.backbone.num_layers
    recipe.write_text("precision = 'fp8'\ncalibration_texts = 8\n")
    given = ["--recipe", str(recipe)]
    facts = build_rounded(checkpoint, tmp_path, "fp8", target, given)
    assert 4 * layers + 4 <= facts.linears["fp8"] <= 7 * layers + 4
    assert facts.linears["fp16"] <= 2 * (4 * layers + 4) + 2
    assert facts.fused_attention == layers


@pytest.mark.parametrize(("precision", "code"), [("int8-weight", "int8"), ("int4-weight", "int4")])
def test_rounded_weights_are_read_in_their_few_bits(
    checkpoint: Path, tmp_path: Path, precision: str, code: str
) -> None:
    """No plan holds them widened."""
    facts = build_rounded(checkpoint, tmp_path, precision, "sm89")
    assert facts.linears[code] >= read_manifest(tmp_path / "artifact").linears[code] - 1
    assert facts.fused_attention == SPEC.backbone.num_layers


def test_float32_is_not_multiplied_in_tf32(checkpoint: Path, tmp_path: Path) -> None:
    """TensorRT allows it unless told otherwise: ten bits of fraction in the place of 23."""
    argv = ["export", str(checkpoint), str(tmp_path / "artifact"), "--precision", "fp32"]
    assert main([*argv, "--opset", "20"]) == 0
    link(tmp_path / "artifact", tmp_path)
    built = build_engine(tmp_path, INPUTS, RTX, (SHORT,))
    plan = (tmp_path / built.name).read_bytes()
    assert b"tf32=0" in plan
    assert b"tf32=1" not in plan


def build_rounded(
    checkpoint: Path,
    folder: Path,
    precision: str,
    target: str,
    given: Sequence[str] = ("--rounding", "nearest"),
) -> EngineFacts:
    """Export, weights to nearest or as given, compile, and return what the plan says of itself."""
    argv = ["export", str(checkpoint), str(folder / "artifact"), "--precision", precision]
    assert main([*argv, *given]) == 0
    link(folder / "artifact", folder)
    options = EngineOptions(Flavour.RTX, (target,))
    return build_engine(folder, INPUTS, options, (SHORT,)).record.facts


def test_a_damaged_plan_is_found(exported: Path, tmp_path: Path, capsys) -> None:
    (name,) = read_manifest(exported).engines
    data = bytearray((exported / name).read_bytes())
    data[len(data) // 2] ^= 1
    (exported / name).write_bytes(data)
    try:
        assert main(["inspect", str(exported), "--full"]) == 2
        assert f"{name} was changed" in capsys.readouterr().err
    finally:
        data[len(data) // 2] ^= 1
        (exported / name).write_bytes(data)


def test_inspect_shows_the_engine(exported: Path, capsys) -> None:
    assert main(["inspect", str(exported)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "for sm89, sm120; 9 fused attentions" in out


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_each_target_alone_fuses_as_well(exported: Path, tmp_path: Path, target: str) -> None:
    link(exported, tmp_path)
    options = EngineOptions(Flavour.RTX, (target,))
    percents: list[int] = []
    built = build_engine(tmp_path, INPUTS, options, (SHORT,), percents.append)
    assert built.record.facts.fused_attention == SPEC.backbone.num_layers
    assert built.record.targets == (target,)
    assert sum(percents) == 100
    assert min(percents) >= 0
    assert len(percents) > 10


def test_the_same_order_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    link(exported, tmp_path)
    first, second = (build_engine(tmp_path, INPUTS, RTX, (SHORT,)) for _ in range(2))
    assert first.sha256 == second.sha256


def test_without_a_target_the_plan_is_portable(exported: Path, tmp_path: Path) -> None:
    link(exported, tmp_path)
    built = build_engine(tmp_path, INPUTS, EngineOptions(Flavour.RTX), (SHORT,))
    assert built.name.endswith("-portable.plan")


def test_profiles_share_the_weights(exported: Path, tmp_path: Path) -> None:
    """A profile more costs a program, not a model: each weight is in the plan once."""
    weights = open_tensors(exported / "model.onnx_data")
    entry = next(e for e in weights.values() if e.name.endswith("down_proj.weight_t"))
    start = entry.offset
    row = (exported / "model.onnx_data").read_bytes()[start : start + 256]
    (name,) = read_manifest(exported).engines
    assert (exported / name).read_bytes().count(row) == 1


def test_the_compiler_starts_and_knows_its_targets() -> None:
    version = probe(RTX, GraphFacts(Precision.FP16, 23, 64))
    assert version.split(".")[0].isdecimal()


@pytest.mark.parametrize("own", ["", "glibc.malloc.perturb=1"])
def test_the_compiler_allocates_in_large_pages_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    tunables: list[str] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args, **kwargs) -> None:
            tunables.append(kwargs["env"]["GLIBC_TUNABLES"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    probe(RTX, GraphFacts(Precision.FP16, 23, 64))
    (used,) = tunables
    assert used == own if own else used.startswith("glibc.malloc.hugetlb=1:")


def test_an_engine_of_full_tensorrt_is_named_after_the_model_that_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: HostDriver(b"NVIDIA H100 80GB HBM3"))
    full = EngineOptions(Flavour.TENSORRT)
    assert engine_name(full, "11.4") == "engines/tensorrt-11.4-sm90-nvidia-h100-80gb-hbm3.plan"
    wide = replace(full, hardware_compatible="ampere_plus")
    assert engine_name(wide, "11.4") == "engines/tensorrt-11.4-sm90.plan"
    assert engine_name(RTX, "1.7") == "engines/tensorrt-rtx-1.7-sm89.plan"


def test_a_version_compatible_plan_asks_for_the_lean_runtime_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(Flavour.RTX, version_compatible=True)
    graph = GraphFacts(Precision.FP16, 23, 64)
    version = probe(RTX, graph)
    name = f"libnvinfer_lean.so.{version.partition('.')[0]}"
    with pytest.raises(MissingPackageError, match=re.escape(name)) as caught:
        probe(options, graph)
    assert caught.value.fix == f"pip install tensorrt-lean=={version}"

    package = tmp_path / "tensorrt_lean_libs"
    package.mkdir()
    (package / "lean.so").write_bytes(empty_library(name=name))
    (package / "__init__.py").write_text(
        "import ctypes, pathlib\nctypes.CDLL(pathlib.Path(__file__).with_name('lean.so'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe(options, graph) == version


def link(artifact: Path, folder: Path) -> None:
    for name in ("model.onnx", "model.onnx_data"):
        (folder / name).symlink_to(artifact / name)


def test_an_operator_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "one", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    (tmp_path / "model.onnx_data").touch()
    with pytest.raises(RecipeError, match="NoSuchOperator"):
        build_engine(tmp_path, (), RTX, ())
    assert not (tmp_path / "engines").exists()


def test_a_build_that_tensorrt_refuses_says_why(exported: Path, tmp_path: Path) -> None:
    link(exported, tmp_path)
    with pytest.raises(RecipeError, match=r"could not build it(.*\n)+.*\[error\]"):
        build_engine(tmp_path, INPUTS[:1], RTX, (SHORT,))
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("signum", "fix"), [(signal.SIGSEGV, "try another --opset"), (signal.SIGKILL, "GiB beside")]
)
def test_a_compiler_that_dies_is_told_with_its_signal(
    exported: Path, tmp_path: Path, signum: signal.Signals, fix: str
) -> None:
    link(exported, tmp_path)

    def kill(_: int) -> None:
        for child in children(os.getpid()):
            os.kill(child, signum)

    with pytest.raises(HardwareError, match=rf"died with signal {signum.name}") as caught:
        build_engine(tmp_path, INPUTS, RTX, (SHORT,), kill)
    assert fix in caught.value.fix
    assert not (tmp_path / "engines").exists()


def test_an_interrupt_ends_the_compiler_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    link(exported, tmp_path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(tmp_path, INPUTS, RTX, (SHORT,), interrupt)
    assert not (tmp_path / "engines").exists()
    assert children(os.getpid()) == []


def test_a_plan_that_the_disk_does_not_take_is_an_error_and_leaves_nothing(
    exported: Path, tmp_path: Path
) -> None:
    """TensorRT says that it was built: it drops what is raised while it writes."""
    link(exported, tmp_path)
    with files_up_to(1 << 20), pytest.raises(ArtifactError, match="cannot be written") as caught:
        build_engine(tmp_path, INPUTS, RTX, (SHORT,))
    assert "free space" in caught.value.fix
    assert not (tmp_path / "engines").exists()


def children(parent: int) -> list[int]:
    """Return the compilers that a process has started."""
    command = ["ps", "-o", "pid=", "-o", "args=", "--ppid", str(parent)]
    found = subprocess.run(command, capture_output=True, check=False)
    lines = found.stdout.decode().splitlines()
    return [int(line.split()[0]) for line in lines if "engine_build" in line]
