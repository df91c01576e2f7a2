"""Tests of scripts/gpu_host.py: its plan, and what goes wrong while it runs.

It runs here as a user runs it, beside an nvidia-smi that tells of an H100 and a Python that makes
the files which our commands would make (`STAND_IN`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import engine_speed, lean_export, random_checkpoint
from nvembed_deploy.__main__ import build_parser
from nvembed_deploy.export.recipe import PRECISIONS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_host.py"
SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, ${DRIVER:-580.0}, ${CAPABILITY:-9.0}, ${MEMORY:-81559}"
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
def host() -> Any:
    """The script as a module: it lies in no package, so that it needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        return import_module("gpu_host")


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
    steps = host.plan(host.parse([*words]), host.Machine(**machine))
    return {step.name: step for step in steps}


def wait_for(path: Path) -> None:
    for _ in range(500):
        if path.exists() and path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def test_the_plan_is_printed_on_any_machine_with_the_standard_library_alone() -> None:
    out = dry_run("./NV-Embed-v2", *FP16)
    parts = ("venv:", "probe-tensorrt:", "export-fp16:", "compile-tensorrt-fp16:")
    places = [out.index(part) for part in (*parts, "measure-tensorrt-fp16:", "nothing was run")]
    assert places == sorted(places)


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
        assert measure.unfit is None
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
            assert {one for need in step.needs for one in need.split("|")} <= seen
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
        ({"memory_mib": 24564}, "export-fp32", "fp32 takes 40200 MiB, the GPU has 24564"),
    ],
)
def test_what_a_machine_cannot_run_is_skipped_with_its_reason(
    host: Any, machine: dict[str, Any], step: str, reason: str
) -> None:
    assert plan(host, "x", **machine)[step].unfit.startswith(reason)


def test_a_gpu_that_is_small_for_the_model_is_compared_with_bf16(host: Any) -> None:
    assert "reference-torch-bf16" in plan(host, "x", memory_mib=24564)
    assert "reference-torch-fp32" in plan(host, "--layers", "8", memory_mib=24564)


def test_a_gpu_without_memory_of_its_own_has_the_machines(place: Place) -> None:
    assert place.run(*FP16, MEMORY="[N/A]")[0] == 0
    mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert place.result["machine"]["memory_mib"] == mib > 100


@pytest.mark.parametrize("version", [12080, 13000])
def test_an_old_driver_is_refused_unless_cuda_s_compatibility_package_is_there(
    place: Place, version: int
) -> None:
    """A data-centre GPU then runs programs of a newer CUDA than its driver's."""
    source = f"int cuDriverGetVersion(int *to) {{ *to = {version}; return 0; }}"
    command = (shutil.which("cc") or pytest.skip("no compiler"), "-shared", "-fPIC", "-xc", "-")
    library = place.bin / "libcuda.so.1"
    subprocess.run([*command, "-o", library], input=source, text=True, check=True)
    code, told = place.run(*FP16, DRIVER="570.86", LD_LIBRARY_PATH=str(place.bin))
    assert (code, bool(place.ran)) == ((0, True) if version == 13000 else (3, False))
    assert ("driver 570.86: CUDA 13 needs 580" in told) == (version != 13000)


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


def test_all_is_run_and_the_artifacts_are_removed(place: Place) -> None:
    assert place.run(*FP16)[0] == 0
    assert place.ran == ["engine_probe", "engine_speed", "export fp16", "compile", "engine_speed"]
    assert (place.artifacts, place.result["not_ended"]) == ([], [])
    assert set(place.result["results"]) == {"torch-fp32", "tensorrt-fp16"}


def test_a_random_checkpoint_is_made_once_and_each_run_measures_anew(place: Place) -> None:
    for times in (1, 0):
        assert place.start("--layers", "2", *FP16).wait(60) == 0
        assert place.ran.count("random_checkpoint") == times
        assert place.ran.count("compile") == 1


@pytest.mark.parametrize("words", [(), ("--keep",)])
def test_an_artifact_is_freed_after_its_last_step_however_that_ends(
    place: Place, words: tuple[str, ...]
) -> None:
    code, said = place.run(*FP16, *words, FAILS="compile")
    assert code == 1
    assert "compile-tensorrt-fp16 exit code 1: error: compile in REPOSITORY" in said
    assert place.statuses["measure-tensorrt-fp16"] == "skipped"
    assert place.artifacts == (["artifact-fp16"] if words else [])


def test_nothing_is_exported_where_tensorrt_does_not_work(place: Place) -> None:
    assert place.run(FAILS="engine_probe")[0] == 1
    assert place.ran == ["engine_probe", "engine_speed"]  # torch's reference needs no TensorRT
    assert place.statuses["export-fp16"] == "skipped"


def test_one_flavour_that_does_not_work_leaves_the_other(host: Any) -> None:
    export = plan(host, "x", "--python", "p", capability="89")["export-fp16"]
    for statuses, missing in ((("failed", "ok"), []), (("failed", "skipped"), [export.needs[-1]])):
        probes = zip(export.needs[-1].split("|"), statuses, strict=True)
        outcomes = {name: host.Outcome(name, status) for name, status in probes}
        assert host.missing(export, outcomes) == missing


def test_when_the_minutes_are_over_the_running_step_ends_and_the_rest_is_left_out(
    place: Place,
) -> None:
    code, said = place.run(*FP16, "--minutes", "0.07", HANGS="compile")
    assert code == 0
    assert place.ran[-2:] == ["compile", "ended compile"]  # it could clean up
    assert place.statuses["compile-tensorrt-fp16"] == "left out"
    assert place.statuses["measure-tensorrt-fp16"] == "left out"
    assert "2 left out" in said
    assert place.artifacts == []


def test_a_step_that_takes_too_long_fails_and_the_others_go_on(place: Place) -> None:
    words = ("--precision", "fp8", *FP16, "--step-minutes", "0.03")
    code, said = place.run(*words, HANGS="export fp8")
    assert code == 1
    assert "export-fp8 stopped (--step-minutes)" in said
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


def test_a_second_ctrl_c_ends_a_step_that_did_not_heed_the_first(host: Any) -> None:
    command = ("sh", "-c", "trap '' INT; echo; exec sleep 60")
    step = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    step.stdout.readline()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(KeyboardInterrupt):
        host.stop(step)
    signal.signal(signal.SIGALRM, before)
    assert step.wait(5) == -signal.SIGKILL


def test_a_random_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        random_checkpoint, "write_random_checkpoint", lambda path, spec: path.mkdir()
    )
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left").touch()
    assert random_checkpoint.main([str(tmp_path / "out"), "--layers", "1"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_random_checkpoint_that_did_not_fit_the_disk_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(path: Path, spec: object) -> None:
        path.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(random_checkpoint, "write_random_checkpoint", fill)
    with pytest.raises(OSError, match="No space"):
        random_checkpoint.main([str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_random_checkpoint_adds_little_to_its_states() -> None:
    """Else 4 bits do not pass an export's self-check: 32 such layers gave a cosine of 0.79."""
    pool = np.random.default_rng(0).standard_normal(1 << 12, np.float32)
    sizes = {
        name: float(np.std(next(lean_export._noise(pool, name, (16, 64), 32))))
        for name in ("embed_tokens.weight", "self_attn.q_proj.weight", "self_attn.o_proj.weight")
    }
    np.testing.assert_allclose([*sizes.values()], [1, 1 / 8, 1 / 64], rtol=0.1)
