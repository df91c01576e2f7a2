#!/usr/bin/env python3
"""Everything a fresh GPU host can tell about NV-Embed, with one command, into one JSON file.

    python3 scripts/gpu_host.py                        # a random checkpoint of full size
    python3 scripts/gpu_host.py ./NV-Embed-v2          # yours
    python3 scripts/gpu_host.py --minutes 14           # a host that is rented for a quarter hour
    python3 scripts/gpu_host.py --dry-run              # what it would do; runs anywhere

It makes a virtual environment, installs, tries TensorRT on a tiny model, exports the checkpoint in
each precision, compiles an engine of each on this GPU, compares each with the checkpoint in torch
on the same GPU, and measures latency and throughput: the most wanted precisions first. The JSON is
written after each step. A step that fails is reported with its reason; those that do not need it go
on. It needs Python 3.11 to 3.13 and nothing else. A second run finds the environment and the random
checkpoint, and measures anew; --precision says what.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp16", "fp8", "int8", "bf16", "int8-weight", "int4-weight", "fp32")
"""The most wanted first: time may end."""
OK, FAILED, SKIPPED, LEFT_OUT = "ok", "failed", "skipped", "left out"
_DRIVER, _CUDA = 580, 13000
"""The first driver for CUDA 13, which TensorRT 11 is built for; and that as CUDA counts."""
_RTX_GPUS = ("75", "80", "86", "89", "120", "121")
_FP32_MIB, _LAYER_MIB = 5_000, 1_100
"""What NV-Embed takes in fp32, with its activations, without its layers; and what each of them."""
_PATIENCE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, None))
"""How a step is asked to end, and the seconds until it is asked less politely. SIGINT comes first:
our commands then remove what is half written."""


@dataclass(frozen=True)
class Machine:
    """The GPU, as nvidia-smi tells; this one where a plan is wanted and there is none."""

    gpu: str = "NVIDIA H100 80GB HBM3"
    driver: str = "580.0"
    capability: str = "90"
    memory_mib: int = 81559

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """The products that run on it, and how each is told for which GPU to build."""
        rtx = {"tensorrt-rtx": ("--target", f"sm{self.capability}")}
        return {"tensorrt": ()} | (rtx if self.capability in _RTX_GPUS else {})

    def unfit(self, precision: str, layers: int) -> str | None:
        """Say why it cannot run a precision."""
        if precision == "fp8" and int(self.capability) < 89:  # noqa: PLR2004
            return f"sm{self.capability} cannot compute in FP8, which begins with sm89"
        needed = _FP32_MIB + layers * _LAYER_MIB
        if precision == "fp32" and self.memory_mib < needed:
            return f"fp32 takes {needed} MiB, the GPU has {self.memory_mib}"
        return None


@dataclass(frozen=True)
class Step:
    """One command; its log has its name."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Steps that must have ended well; of "one|other", either."""
    unfit: str | None = None
    """Why this machine cannot run it."""
    makes: Path | None = None
    """A folder that appears whole: where it is there, nothing is to do."""
    is_last: bool = False
    """Whether nothing later needs the artifact."""


@dataclass
class Outcome:
    """How a step ended: ok, failed, skipped or left out (for lack of time), and why."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str | None = None


def main(argv: list[str] | None = None) -> int:
    """Plan, run, write; exit code 0 if every step that could run in time did well."""
    args, machine = parse(argv), probe()
    mistake = None if args.dry_run else wrong(args, machine)
    if mistake:
        code, problem, fix = mistake
        sys.stderr.write(f"error: {problem}\nfix: {fix}\n")
        return code
    steps = list(plan(args, machine or Machine()))
    if args.dry_run:
        for step in steps:
            say(f"{step.name}: {step.unfit or shlex.join(step.command)}")
        say(f"for {machine or Machine()}\nresult in {args.out}; nothing was run (--dry-run)")
        return 0
    args.folder.mkdir(parents=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # what a host sends before it goes away
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup's stays ignored
            signal.signal(number, signal.default_int_handler)
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "machine": asdict(machine or Machine()),
        "checkpoint": args.checkpoint.name if args.checkpoint else f"random, {args.layers} layers",
        "rounding": args.rounding,
    }
    return run(steps, args, head)


def run(steps: list[Step], args: argparse.Namespace, head: dict[str, Any]) -> int:
    """Run the steps in order; the file is written after each, and whatever ends that."""
    outcomes: dict[str, Outcome] = {}
    try:
        for step in steps:
            outcomes[step.name] = found = run_step(step, outcomes, args)
            say(f"{found.status:8} {found.seconds:7.0f} s  {step.name} {found.reason or ''}")
            if step.is_last:
                free(args)
            write(args, head, steps, outcomes)
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    finally:
        free(args)
        write(args, head, steps, outcomes)
        kinds = [outcome.status for outcome in outcomes.values()]
        counts = (f"{kinds.count(kind)} {kind}" for kind in (OK, FAILED, SKIPPED, LEFT_OUT))
        say(f"\nwrote {args.out}: {', '.join(counts)}")
    return int(FAILED in kinds)


def write(
    args: argparse.Namespace, head: dict[str, Any], steps: list[Step], outcomes: dict[str, Outcome]
) -> None:
    """Write what is known by now; a result NAME.partial is of a step that did not end."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(args.folder.glob("result-*.json"))}
    result = head | {
        "steps": [asdict(outcome) for outcome in outcomes.values()],
        "not_ended": [step.name for step in steps if step.name not in outcomes],
        "results": {name.removeprefix("result-"): result for name, result in found.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f".{args.out.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(args.out)


def free(args: argparse.Namespace) -> None:
    """Remove the artifacts: each is as large as the model, twice."""
    for artifact in [] if args.keep else args.folder.glob("*artifact-*"):
        shutil.rmtree(artifact, ignore_errors=True)


def run_step(step: Step, outcomes: dict[str, Outcome], args: argparse.Namespace) -> Outcome:
    """Run a step, unless it cannot be, or there is nothing to do."""
    if step.unfit:
        return Outcome(step.name, SKIPPED, reason=step.unfit)
    if time.monotonic() >= args.until:
        return Outcome(step.name, LEFT_OUT, reason="no time left (--minutes)")
    if lacks := missing(step, outcomes):
        return Outcome(step.name, SKIPPED, reason=f"needs {', '.join(lacks)}")
    if step.makes and step.makes.exists():
        return Outcome(step.name, OK, reason="there already")
    return execute(step, args)


def missing(step: Step, outcomes: dict[str, Outcome]) -> list[str]:
    """Return what a step needs that did not end well."""
    ended_well = {name for name, outcome in outcomes.items() if outcome.status == OK}
    return [need for need in step.needs if ended_well.isdisjoint(need.split("|"))]


def execute(step: Step, args: argparse.Namespace) -> Outcome:
    """Run a step in a process group of its own, which is stopped when its time is over."""
    log, started, is_late = args.folder / f"{step.name}.log", time.monotonic(), False
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
            process.wait(min(60 * args.step_minutes, args.until - started))
        except OSError as error:
            return Outcome(step.name, FAILED, reason=str(error))
        except subprocess.TimeoutExpired:
            is_late = True
            stop(process)
        except KeyboardInterrupt:
            stop(process)
            raise
    seconds, code = round(time.monotonic() - started, 1), process.returncode
    if code == 0 and not is_late:
        return Outcome(step.name, OK, seconds)
    if is_late and time.monotonic() >= args.until:
        return Outcome(step.name, LEFT_OUT, seconds, "stopped: no time left (--minutes)")
    how = "stopped (--step-minutes)" if is_late else f"exit code {code}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    end = " | ".join(lines[-3:])
    for place, name in ((args.work, "WORK"), (ROOT, "REPOSITORY"), (Path.home(), "HOME")):
        end = end.replace(str(place), name)  # the result is published
    return Outcome(step.name, FAILED, seconds, f"{how}: {end}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: politely, then less so; a second Ctrl-C ends it at once."""
    try:
        for number, patience in _PATIENCE:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that it left


def plan(args: argparse.Namespace, machine: Machine) -> Iterator[Step]:
    """Yield the steps in order."""
    python = str(args.python or args.work / "venv" / "bin" / "python")
    ready = () if args.python else ("install",)
    if args.python is None:
        extras = ",".join(("export", "onnx", *machine.targets))
        pip = (python, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", "constraints.txt")
        yield Step("venv", (sys.executable, "-m", "venv", str(args.work / "venv")))
        yield Step("install", (*pip, "torch==2.13.0", "-e", f".[{extras}]"), ("venv",))
    for flavour, target in machine.targets.items():
        command = (python, "-m", "benchmarks.engine_probe", "--engine", flavour, *target)
        yield Step(f"probe-{flavour}", command, ready)
    checkpoint = args.checkpoint or args.work / f"checkpoint-{args.layers}-layers"
    if args.checkpoint is None:
        command = (python, "-m", "benchmarks.random_checkpoint", str(checkpoint))
        layers = ("--layers", str(args.layers))
        yield Step("checkpoint", (*command, *layers), ready, makes=checkpoint)
        ready = ("checkpoint",)
    rows = args.folder / "reference.npy"
    dtype = "bf16" if machine.unfit("fp32", args.layers) else "fp32"
    reference = f"reference-torch-{dtype}"
    speed = (python, "-m", "benchmarks.engine_speed")
    torch = ("--runtime", "torch", "--device", "cuda", "--dtype", dtype, "--repeats", "0")
    result = ("--json", str(args.folder / f"result-torch-{dtype}.json"))
    yield Step(reference, (*speed, str(checkpoint), *torch, "--save", str(rows), *result), ready)
    # Calibrating 7B on processors takes hours; rounding to nearest reads no texts, on any device.
    device = ("--device", "cuda") if args.rounding != "nearest" else ()
    exports = dict.fromkeys(PRECISIONS, ("--rounding", args.rounding, *device))
    exports |= {"fp16": (), "bf16": (), "fp32": ("--opset", "20")}  # no kernel has fp32 attention
    ours = (python, "-m", "nvembed_deploy")
    probed = "|".join(f"probe-{flavour}" for flavour in machine.targets)
    for precision in dict.fromkeys(args.precision or PRECISIONS):
        artifact = args.folder / f"artifact-{precision}"
        unfit = machine.unfit(precision, args.layers)
        words = (str(artifact), "--precision", precision, *exports[precision])
        exported = f"export-{precision}"
        yield Step(exported, (*ours, "export", str(checkpoint), *words), (*ready, probed), unfit)
        for flavour, target in machine.targets.items():
            name = f"{flavour}-{precision}"
            command = (*ours, "compile", str(artifact), "--engine", flavour, *target)
            needs = (exported, f"probe-{flavour}")
            yield Step(f"compile-{name}", command, needs, unfit)
            command = (*speed, str(artifact), "--runtime", flavour, "--reference", str(rows))
            times = ("--repeats", str(args.repeats), "--seconds", f"{args.seconds:g}")
            result = ("--json", str(args.folder / f"result-{name}.json"))
            needs, is_last = (f"compile-{name}", reference), flavour == [*machine.targets][-1]
            command = (*command, *times, *result)
            yield Step(f"measure-{name}", command, needs, unfit, is_last=is_last)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint folder")
    parser.add_argument("--layers", type=int, default=32, help="of a random one (%(default)s)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only (repeat)")
    parser.add_argument(
        "--rounding",
        choices=("nearest", "compensated"),
        default="nearest",
        help="of quantised ones (%(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each shape")
    parser.add_argument("--seconds", type=float, default=5, help="but no longer (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop then: no step begins, one is ended")
    parser.add_argument("--step-minutes", type=float, default=60, help="of one (%(default)s)")
    parser.add_argument("--python", type=Path, help="that has all packages: nothing is installed")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-host")
    parser.add_argument("--out", type=Path, help="JSON (benchmarks/results/gpu-host-TIME.json)")
    parser.add_argument("--keep", action="store_true", help="keep each artifact (disk!)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    args, stamp = parser.parse_args(argv), time.strftime("%Y-%m-%d-%H%M%S")
    args.until = time.monotonic() + 60 * (args.minutes or float("inf"))
    args.out = args.out or ROOT / "benchmarks" / "results" / f"gpu-host-{stamp}.json"
    args.work, args.checkpoint = args.work.resolve(), args.checkpoint and args.checkpoint.resolve()
    args.folder = args.work / f"run-{stamp}-{os.getpid()}"
    args.python = args.python and args.python.absolute()  # a venv's is a link: not resolved
    return args


def probe() -> Machine | None:
    """Ask nvidia-smi about the first GPU."""
    keys = "name,driver_version,compute_cap,memory.total"
    told = said("nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader,nounits")
    if not told:
        return None
    gpu, driver, capability, memory = map(str.strip, told.splitlines()[0].rsplit(",", 3))
    # A GPU without memory of its own (GB10, in DGX Spark) says [N/A]: it has the machine's.
    machines = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    mib = int(memory) if memory.isdecimal() else machines
    return Machine(gpu, driver, capability.replace(".", ""), mib)


def wrong(args: argparse.Namespace, machine: Machine | None) -> tuple[int, str, str] | None:
    """Return why nothing can be run here, and what to do, after the exit code."""
    here, checkpoint, python = sys.version_info[:2], args.checkpoint, args.python
    driver = machine.driver if machine else ""
    if machine is None:
        return 3, "nvidia-smi shows no NVIDIA GPU", "run this on a GPU host; or --dry-run"
    if int(driver.split(".")[0]) < _DRIVER and cuda_version() < _CUDA:
        fix = "update it; data-centre GPUs take NVIDIA's package cuda-compat-13-0 instead"
        return 3, f"driver {driver}: CUDA 13 needs {_DRIVER} or newer", fix
    if python is None and not (3, 11) <= here <= (3, 13):
        return 3, f"this is Python {here[0]}.{here[1]}, expected 3.11 to 3.13", "run python3.12"
    if checkpoint is not None and not checkpoint.is_dir():
        return 2, f"{checkpoint} is no folder, expected a checkpoint's", "or none: a random one"
    if python is not None and not os.access(python, os.X_OK):
        return 2, f"--python {python} cannot be run", "name the bin/python that has all packages"
    return None


def cuda_version() -> int:
    """Return the CUDA that programs get here; newer than the driver's where cuda-compat is."""
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def said(*command: str) -> str:
    """Return what a command prints; nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def say(text: str) -> None:
    """Print a line at once: a run takes hours."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
