"""Tests of scripts/gpu_host.py: its plan, and what goes wrong while it runs.

It runs here as a user runs it, beside an nvidia-smi that tells of an H100 and a Python that makes
the files which our commands would make (`STAND_IN`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import engine_speed, random_checkpoint
from nvembed_deploy.__main__ import build_parser
from nvembed_deploy.export.recipe import PRECISIONS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_host.py"
SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 580.0, 9.0, ${MEMORY:-81559}"
"""
STAND_IN = """#!{python} -S
import json, os, pathlib, sys, time
words = sys.argv[2:]
asked = lambda name: words[words.index(name) + 1] if name in words else None
kind = words[1] if words[0] == "nvembed_deploy" else words[0].partition(".")[2]
with open(os.environ["RAN"], "a") as file:
    kind += " " + asked("--precision") if asked("--precision") else ""
    print(kind, file=file)
if kind == os.environ.get("FAILS"):
    sys.exit("error: " + kind + " in " + os.getcwd())
if kind == os.environ.get("HANGS"):
    try:
        pathlib.Path(os.environ["RAN"] + ".pid").write_text(str(os.getpid()))
        time.sleep(60)
    finally:
        print("ended", kind, file=open(os.environ["RAN"], "a"))
if kind == "random_checkpoint":
    pathlib.Path(words[1]).mkdir()
    pathlib.Path(words[1], "model.safetensors").touch()
if kind.startswith("export"):
    pathlib.Path(words[3]).mkdir()
    pathlib.Path(words[3], "manifest.json").touch()
if asked("--save"):
    pathlib.Path(asked("--save")).touch()
if asked("--json"):
    pathlib.Path(asked("--json")).write_text(json.dumps({{"of": words[1]}}))
"""
FP16 = ("--precision", "fp16")


class Place:
    """A GPU host's stand-in: its commands, its files, and what ran there."""

    def __init__(self, folder: Path) -> None:
        self.work, self.out, self.bin = folder / "work", folder / "out.json", folder / "bin"
        self.checkpoint = folder / "mine"
        for path in (self.bin, self.checkpoint):
            path.mkdir()
        (self.checkpoint / "model.safetensors").touch()
        stand_in = STAND_IN.format(python=sys.executable)
        for name, text in (("nvidia-smi", SMI), ("python", stand_in)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        (self.work.parent / "ran").write_text("")
        return subprocess.Popen(
            [
                *(sys.executable, str(SCRIPT), "--python", str(self.bin / "python")),
                *("--work", str(self.work), "--out", str(self.out), *words),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {"PATH": f"{self.bin}:{os.environ['PATH']}", "RAN": str(self.work.parent / "ran")}
            | env,
        )

    def run(self, *words: str, **env: str) -> tuple[int, str]:
        """Return exit code and output of a whole run with a checkpoint of mine."""
        process = self.start(str(self.checkpoint), *words, **env)
        said = process.communicate(timeout=60)[0]
        return process.returncode, said

    @property
    def ran(self) -> list[str]:
        return [line.strip() for line in (self.work.parent / "ran").read_text().splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.out.read_text())

    @property
    def statuses(self) -> dict[str, str]:
        return {step["name"]: step["status"] for step in self.result["steps"]}

    @property
    def artifacts(self) -> list[str]:
        return sorted(path.name for path in self.work.glob("run-*/artifact-*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def host() -> Iterator[SimpleNamespace]:
    """The script's files as one module: they lie in no package, so that they need none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        modules = [import_module(n) for n in ("gpu_steps", "gpu_run", "gpu_plan", "gpu_host")]
        yield SimpleNamespace(**{name: v for m in modules for name, v in vars(m).items()})


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
    given = host.Host(args, host.Machine(**machine), args.work / "run")
    return {step.name: step for step in host.plan(given)}


def wait_for(path: Path) -> None:
    for _ in range(500):
        if path.exists() and path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def test_the_plan_is_printed_on_any_machine_with_the_standard_library_alone() -> None:
    out = dry_run("./NV-Embed-v2", *FP16)
    parts = ("1. venv", "probe-tensorrt", "export-fp16 (31 GB)", "compile-tensorrt-fp16")
    places = [out.index(part) for part in (*parts, "measure-tensorrt-fp16", "disk: 45 GB at most")]
    assert places == sorted(places)
    assert "nothing was run" in out


def test_each_of_our_commands_in_the_plan_is_one_that_our_parser_takes(host: Any) -> None:
    for words in ((), ("--rounding", "compensated")):
        steps = plan(host, *words, capability="89", memory_mib=46068)
        ours = [s.command[3:] for s in steps.values() if s.command[1:3] == ("-m", "nvembed_deploy")]
        assert len(ours) > 10
        for command in ours:
            build_parser().parse_args(command)


def test_each_measuring_command_in_the_plan_is_one_that_its_parser_takes(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = plan(host, "x", "--repeats", "9", "--seconds", "2.5", capability="89").values()
    commands = [s.command[2:] for s in steps if s.command[2] == "benchmarks.engine_speed"]
    assert len(commands) == 15
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*command])
        args = engine_speed.parse()
        assert (args.repeats, args.seconds) == ((9, 2.5) if args.reference else (0, float("inf")))


def test_every_precision_for_gpus_is_built_the_most_wanted_first(host: Any) -> None:
    assert set(host.PRECISIONS) == set(PRECISIONS) - {"int8-cpu"}
    steps = plan(host, "x")
    for precision in host.PRECISIONS:
        measure = steps[f"measure-tensorrt-{precision}"]
        assert measure.skipped is None
        assert set(measure.needs) == {f"compile-tensorrt-{precision}", "reference-torch-fp32"}
    exports = [name.removeprefix("export-") for name in steps if name.startswith("export-")]
    assert (exports[:3], exports[-1]) == (["fp16", "fp8", "int8"], "fp32")


def test_calibrating_is_done_on_the_gpu_and_nothing_else_is(host: Any) -> None:
    compensated = plan(host, "x", "--rounding", "compensated")
    assert "--device" in compensated["export-fp8"].command
    assert "--device" not in compensated["export-fp16"].command
    assert "--device" not in plan(host, "x")["export-fp8"].command


def test_each_step_needs_only_earlier_ones(host: Any) -> None:
    for words in ((), ("x",), ("--python", "p"), ("x", "--python", "p")):
        seen: set[str] = set()
        for name, step in plan(host, *words, capability="120").items():
            assert {*step.needs, *step.needs_any} <= seen
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
        ({"driver": "570.86"}, "venv", "driver 570.86: CUDA 13 needs 580"),
    ],
)
def test_what_a_machine_cannot_run_is_skipped_with_its_reason(
    host: Any, machine: dict[str, Any], step: str, reason: str
) -> None:
    assert plan(host, "x", **machine)[step].skipped.startswith(reason)


def test_a_gpu_without_memory_of_its_own_has_the_machines(place: Place, host: Any) -> None:
    assert place.run(*FP16, MEMORY="[N/A]")[0] == 0
    assert place.result["machine"]["memory_mib"] == host.system_memory_mib() > 100


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


@pytest.mark.parametrize("words", [("./no-such-folder",), ("--python", "./no-such-python")])
def test_a_path_that_is_not_there_is_refused_before_anything_runs(
    place: Place, words: tuple[str, ...]
) -> None:
    process = place.start(*words)
    said = process.communicate(timeout=60)[0]
    assert (process.returncode, place.ran, place.work.exists()) == (2, [], False)
    assert words[-1].removeprefix(".") in said


def test_a_run_goes_on_where_the_same_one_ended(place: Place) -> None:
    assert place.run(*FP16)[0] == 0
    assert place.ran == ["engine_probe", "engine_speed", "export fp16", "compile", "engine_speed"]
    assert (place.artifacts, place.result["not_ended"]) == ([], [])
    assert place.run(*FP16)[0] == 0
    assert place.ran == ["engine_probe"]
    assert set(place.result["results"]) == {"torch-fp32", "tensorrt-fp16"}


def test_a_small_trial_is_not_taken_for_another_run(place: Place) -> None:
    published = []
    for words in (("--layers", "1"), ("--layers", "2"), ("--layers", "2", "--repeats", "9")):
        assert place.start(*words, *FP16).communicate(timeout=60)
        assert "compile" in place.ran
        published.append(place.result["results"]["tensorrt-fp16"]["of"])
    assert place.run(*FP16)[0] == 0
    (place.checkpoint / "model.safetensors").write_text("trained further")
    said = place.run(*FP16)[1]
    assert "compile" in place.ran
    assert len(set(published)) == 3
    assert said.count("of other runs: ") == 6  # four runs and two checkpoints


def test_a_result_has_a_file_of_its_own(host: Any) -> None:
    names = set()
    for words in (("--layers", "1"), ("--layers", "2")):
        args, machine = host.parse([*words]), host.Machine()
        about = host.identity(args, machine)
        names.add(host.default_out(host.Host(args, machine, args.work / host.run_name(about))).name)
    assert len(names) == 2


@pytest.mark.parametrize("words", [(), ("--keep",)])
def test_an_artifact_is_freed_after_its_last_step_however_that_ends(
    place: Place, words: tuple[str, ...]
) -> None:
    code, said = place.run(*FP16, *words, FAILS="compile")
    assert code == 1
    assert "failed compile-tensorrt-fp16: exit code 1: error: compile in REPOSITORY" in said
    assert place.statuses["measure-tensorrt-fp16"] == "skipped"
    assert place.artifacts == (["artifact-fp16"] if words else [])


def test_nothing_is_exported_where_tensorrt_does_not_work(place: Place) -> None:
    assert place.run(FAILS="engine_probe")[0] == 1
    assert place.ran == ["engine_probe", "engine_speed"]  # torch's reference needs no TensorRT
    assert place.statuses["export-fp16"] == "skipped"


def test_one_flavour_that_does_not_work_leaves_the_other(host: Any, tmp_path: Path) -> None:
    python = sys.executable
    steps = [
        host.Step("a", (python, "-c", "raise SystemExit(1)")),
        host.Step("b", (python, "-c", "")),
        host.Step("c", (python, "-c", ""), needs_any=("a", "b")),
        host.Step("d", (python, "-c", ""), needs_any=("a",)),
    ]
    ended: list[Any] = []
    host.run_all(steps, tmp_path, host.Limits(60), ended.append, keep=False)
    assert [o.status for o in ended] == ["failed", "ok", "ok", "skipped"]
    assert ended[3].reason == "needs a"


def test_when_the_minutes_are_over_the_running_step_ends_and_the_rest_is_left_out(
    place: Place,
) -> None:
    code, said = place.run(*FP16, "--minutes", "0.07", HANGS="compile")
    assert code == 0
    assert place.ran[-2:] == ["compile", "ended compile"]  # it could clean up
    assert place.statuses["compile-tensorrt-fp16"] == "left out"
    assert place.statuses["measure-tensorrt-fp16"] == "left out"
    assert "2 left out\n  left out compile-tensorrt-fp16: stopped after" in said
    assert place.artifacts == ["artifact-fp16"]  # for the next run
    assert place.run(*FP16)[0] == 0
    assert place.ran == ["engine_probe", "compile", "engine_speed"]


def test_a_step_that_takes_too_long_fails_and_the_others_go_on(place: Place) -> None:
    words = ("--precision", "fp8", *FP16, "--step-minutes", "0.03")
    code, said = place.run(*words, HANGS="export fp8")
    assert code == 1
    assert "failed export-fp8: stopped after 2 s (--step-minutes)" in said
    assert place.statuses["measure-tensorrt-fp16"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_run_that_is_ended_has_written_what_it_knows(place: Place, number: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run where this signal is ignored, as with nohup")
    process = place.start(str(place.checkpoint), *FP16, HANGS="compile")
    pid = place.work.parent / "ran.pid"
    wait_for(pid)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert place.statuses["export-fp16"] == "ok"
    assert place.result["not_ended"] == ["compile-tensorrt-fp16", "measure-tensorrt-fp16"]
    assert "torch-fp32" in place.result["results"]
    if number == signal.SIGKILL:
        os.kill(int(pid.read_text()), number)
    else:
        assert place.ran[-1] == "ended compile"


def test_a_step_without_room_on_the_disk_is_skipped(host: Any, tmp_path: Path) -> None:
    step = host.Step("a", ("no such program",), disk_bytes=1 << 60)
    outcome = host.run_step(step, {}, tmp_path, host.Limits(60))
    assert outcome.status == "skipped"
    assert outcome.reason.startswith("needs 1152921505 GB of disk, ")
    assert host.run_step(host.Step("b", step.command), {}, tmp_path, host.Limits(1)).status == (
        "failed"
    )


def test_an_environment_that_was_left_half_made_is_made_again(host: Any, tmp_path: Path) -> None:
    step = plan(host, "--work", str(tmp_path), *FP16)["venv"]
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()  # as where ensurepip failed
    outcome = host.run_step(step, {}, tmp_path, host.Limits(300))
    assert (outcome.status, outcome.reason) == ("ok", None)
    assert (python.parent / "pip").exists()
    assert host.run_step(step, {}, tmp_path, host.Limits(1)).reason == "done by an earlier run"


def test_a_random_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        random_checkpoint, "write_random_checkpoint", lambda path, spec: path.mkdir()
    )
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left").touch()
    assert random_checkpoint.main([str(tmp_path / "out"), "--layers", "1"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []
