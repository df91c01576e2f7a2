"""Tests of scripts/gpu_host.py and benchmarks/engine_speed.py: the plan, and what goes wrong in it.

The measuring itself is run here on a processor.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import engine_speed, random_checkpoint
from nvembed_deploy.__main__ import build_parser
from nvembed_deploy.export.recipe import PRECISIONS
from nvembed_deploy.runtimes import load_encoder

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_host.py"


@pytest.fixture(scope="module")
def host() -> SimpleNamespace:
    """The script as a module: it lies in no package, so that it needs none."""
    sys.modules.pop("gpu_host", None)
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="gpu_host"))


def dry_run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), "--dry-run", *words],  # -S: the standard library alone
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan(host: Any, *words: str, **machine: Any) -> dict[str, Any]:
    args = host.parse([*words])
    return {step.name: step for step in host.plan(args, host.Machine(**machine))}


def test_the_plan_is_printed_on_any_machine_with_the_standard_library_alone() -> None:
    out = dry_run("./NV-Embed-v2", "--precision", "fp16")
    for part in ("1. venv", "export-fp16", "compile-tensorrt-fp16", "measure-tensorrt-fp16"):
        assert part in out
    assert "nothing was run" in out


def test_each_of_our_commands_in_the_plan_is_one_that_our_parser_takes(host: Any) -> None:
    steps = plan(host, capability="89", memory_mib=46068)
    ours = [s.command[3:] for s in steps.values() if s.command[1:3] == ("-m", "nvembed_deploy")]
    assert len(ours) > 10
    for words in ours:
        build_parser().parse_args(words)


def test_every_precision_for_gpus_is_built(host: Any) -> None:
    assert set(host.PRECISIONS) == set(PRECISIONS) - {"int8-cpu"}
    steps = plan(host, "x")
    for precision in host.PRECISIONS:
        measure = steps[f"measure-tensorrt-{precision}"]
        assert measure.skipped is None
        assert set(measure.needs) == {f"compile-tensorrt-{precision}", "reference-torch-fp32"}


def test_each_step_needs_only_earlier_ones(host: Any) -> None:
    for words in ((), ("x",)):
        seen: set[str] = set()
        for name, step in plan(host, *words, capability="120").items():
            assert set(step.needs) <= seen
            seen.add(name)


def test_a_hopper_gpu_runs_tensorrt_and_an_rtx_gpu_both(host: Any) -> None:
    hopper, ada = plan(host), plan(host, capability="89")
    assert not [name for name in hopper if "rtx" in name]
    assert "--target" in ada["compile-tensorrt-rtx-fp16"].command
    assert ada["compile-tensorrt-rtx-fp16"].command[-1] == "sm89"


@pytest.mark.parametrize(
    ("machine", "step", "reason"),
    [
        ({"capability": "80"}, "export-fp8", "sm80 cannot compute in FP8"),
        ({"memory_mib": 24564}, "export-fp32", "fp32 weights do not fit 24564 MiB"),
        ({"driver": "570.86"}, "install", "driver 570.86: CUDA 13 needs 580"),
    ],
)
def test_what_a_machine_cannot_run_is_skipped_with_its_reason(
    host: Any, machine: dict[str, Any], step: str, reason: str
) -> None:
    assert plan(host, "x", **machine)[step].skipped.startswith(reason)


def test_without_a_gpu_the_run_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/nowhere"},
    )
    assert done.returncode == 3
    assert "--dry-run" in done.stderr


def test_a_step_that_fails_stops_only_those_that_need_it(host: Any, tmp_path: Path) -> None:
    python, kept = sys.executable, tmp_path / "folder"
    kept.mkdir()
    fails = f"import sys; print('{host.ROOT}/secret went wrong'); sys.exit(4)"
    steps = [
        host.Step("a", (python, "-c", fails), frees=str(kept)),
        host.Step("b", (python, "-c", "print(1)"), needs=("a",)),
        host.Step("c", (python, "-c", "print(1)"), frees=str(kept)),
        host.Step("d", ("no such program",), done=(str(tmp_path),)),
    ]
    outcomes = host.run_all(steps[:1], tmp_path, keep=False)
    assert kept.exists()  # to look into
    outcomes = host.run_all(steps, tmp_path, keep=False)
    assert [(o.name, o.status, o.reason) for o in outcomes] == [
        ("a", "failed", "exit code 4: REPOSITORY/secret went wrong"),
        ("b", "skipped", "needs a"),
        ("c", "ok", None),
        ("d", "ok", "done by an earlier run"),
    ]
    assert not kept.exists()
    assert host.summary(outcomes).startswith("2 ok, 1 failed, 1 skipped\n  failed a: exit code 4")


def test_measuring_an_artifact_against_a_saved_reference(
    tiny_assembled: Path, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_speed, "LENGTHS", (5, 17, 40))
    monkeypatch.setattr(engine_speed, "SHAPES", ((1, 32), (4, 16)))
    rows, result = tmp_path / "rows.npy", tmp_path / "result.json"
    cpu = ["--device", "cpu"]
    words = [str(tiny_assembled), "--runtime", "torch", "--dtype", "fp32", "--save", str(rows)]
    measure(monkeypatch, *words, *cpu, "--repeats", "0")
    words = [str(tiny_artifact), "--runtime", "onnx", "--reference", str(rows)]
    measure(monkeypatch, *words, *cpu, "--repeats", "3", "--json", str(result))
    said = json.loads(result.read_text())
    assert said["agreement"]["texts"] == 6
    assert said["agreement"]["cosine_min"] > 0.999999
    assert [(row["texts"], row["tokens"]) for row in said["speed"]] == [(1, 32), (4, 16)]
    assert all(row["p50_ms"] <= row["p99_ms"] for row in said["speed"])
    assert (said["runtime"], said["device"], said["precision"]) == ("onnx", "cpu", "fp32")


def measure(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["engine_speed", *words])
    assert engine_speed.main() == 0


def test_a_row_that_is_another_texts_shows(tiny_artifact: Path, tmp_path: Path) -> None:
    with load_encoder(tiny_artifact, "onnx", device="cpu") as encoder:
        rows_ND = np.concatenate(
            [
                encoder.runtime.embed(engine_speed.random_batch(encoder, [9], seed=seed))
                for seed in range(3)
            ]
        )
    np.save(tmp_path / "rows.npy", rows_ND[[0, 2, 1]])
    assert engine_speed.compare(rows_ND, tmp_path / "rows.npy")["cosine_min"] < 0.99


def test_a_random_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        random_checkpoint, "write_random_checkpoint", lambda path, spec: path.mkdir()
    )
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left").touch()
    assert random_checkpoint.main([str(tmp_path / "out"), "--layers", "1"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []
