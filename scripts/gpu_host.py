#!/usr/bin/env python3
"""Everything a fresh GPU host can tell about NV-Embed, with one command, into one JSON file.

    python3 scripts/gpu_host.py                        # a random checkpoint of full size
    python3 scripts/gpu_host.py ./NV-Embed-v2          # yours
    python3 scripts/gpu_host.py --dry-run              # what it would do; runs anywhere

It makes a virtual environment, installs, exports the checkpoint in each precision, compiles an
engine of each on this GPU, compares each with the checkpoint in torch on the same GPU, and measures
latency and throughput. A step that fails, or cannot run here, is reported with its reason; those
that do not need it go on. It needs Python 3.11 to 3.13 and nothing else. A second run takes up
where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int8-weight", "int4-weight")
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int4-weight": 4.5}
_DEFAULT_BITS = 8
_PARAMETERS = 7.35e9
"""Of NV-Embed with a folded pooler."""
_ROOM = 1.25
"""Memory that an engine and its activations take, over the weights."""
_RTX_GPUS = ("75", "80", "86", "89", "120", "121")
_DRIVER = 580
"""The first driver for CUDA 13, which TensorRT 11 is built for."""
_LOG_LINES = 3


@dataclass(frozen=True)
class Machine:
    """The GPU, as nvidia-smi tells; `assumed` where there is none and a plan is wanted anyway."""

    gpu: str = "NVIDIA H100 80GB HBM3"
    driver: str = "580.0"
    capability: str = "90"
    memory_mib: int = 81559
    assumed: bool = False


@dataclass(frozen=True)
class Step:
    """One command. It is skipped where one that it needs did not end well."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    """Files of which any says that an earlier run did it."""
    skipped: str | None = None
    """Why this machine cannot run it."""
    frees: str | None = None
    """A folder that nothing later needs."""


@dataclass
class Outcome:
    """How a step ended: ok, failed or skipped, and why."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str | None = None


def main(argv: list[str] | None = None) -> int:
    """Plan, run, write; exit code 0 if every step that could run did well."""
    args = parse(argv)
    machine = probe()
    if machine is None and not args.dry_run:
        sys.stderr.write("error: nvidia-smi shows no NVIDIA GPU\n")
        sys.stderr.write("fix: run this on a GPU host; --dry-run shows the plan\n")
        return 3
    machine = machine or Machine(assumed=True)
    steps = list(plan(args, machine))
    if args.dry_run:
        show(steps, machine, args)
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    outcomes = run_all(steps, args.work, keep=args.keep)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": said(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "machine": asdict(machine),
        "checkpoint": args.checkpoint.name if args.checkpoint else f"random, {args.layers} layers",
        "steps": [asdict(outcome) for outcome in outcomes],
        "results": collect(args.work),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"\nwrote {args.out}\n{summary(outcomes)}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint folder")
    parser.add_argument("--layers", type=int, default=32, help="of a random one (%(default)s)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only (repeat)")
    parser.add_argument("--rounding", default="nearest", help="of quantised ones (%(default)s)")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each shape")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-host")
    parser.add_argument("--out", type=Path, help="JSON (benchmarks/results/gpu-host-DATE.json)")
    parser.add_argument("--keep", action="store_true", help="keep each artifact (disk!)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    args = parser.parse_args(argv)
    args.work, args.checkpoint = args.work.resolve(), args.checkpoint and args.checkpoint.resolve()
    name = f"gpu-host-{time.strftime('%Y-%m-%d')}.json"
    args.out = args.out or ROOT / "benchmarks" / "results" / name
    return args


def probe() -> Machine | None:
    """Ask nvidia-smi about the first GPU."""
    keys = "name,driver_version,compute_cap,memory.total"
    told = said(["nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader,nounits"])
    if not told:
        return None
    gpu, driver, capability, memory = map(str.strip, told.splitlines()[0].split(","))
    return Machine(gpu, driver, capability.replace(".", ""), int(memory))


def plan(args: argparse.Namespace, machine: Machine) -> Iterator[Step]:
    """Yield the steps in order."""
    python = str(args.work / "venv" / "bin" / "python")
    venv, pip = (python, "-m"), (python, "-m", "pip", "install", "-q", "-c", "constraints.txt")
    old = int(machine.driver.split(".")[0]) < _DRIVER
    wrong = f"driver {machine.driver}: CUDA 13 needs {_DRIVER} or newer" if old else None
    extras = "export,onnx,tensorrt" + (",tensorrt-rtx" if is_rtx(machine) else "")
    yield Step("venv", (sys.executable, "-m", "venv", str(args.work / "venv")), done=(python,))
    yield Step("torch", (*pip, "torch==2.13.0"), ("venv",))
    yield Step("install", (*pip, "-e", f".[{extras}]"), ("torch",), skipped=wrong)
    checkpoint = args.checkpoint or args.work / "checkpoint"
    before: tuple[str, ...] = ("install",)
    if args.checkpoint is None:
        command = (*venv, "benchmarks.random_checkpoint", str(checkpoint))
        done = (str(checkpoint / "model.safetensors"),)
        yield Step("checkpoint", (*command, "--layers", str(args.layers)), before, done)
        before = ("checkpoint",)
    rows = args.work / "reference.npy"
    dtype = "fp32" if fits("fp32", machine) else "bf16"
    speed = (*venv, "benchmarks.engine_speed")
    yield Step(
        f"reference-torch-{dtype}",
        (
            *(*speed, str(checkpoint), "--runtime", "torch", "--device", "cuda"),
            *("--dtype", dtype, "--save", str(rows), "--repeats", str(args.repeats)),
            *("--json", str(args.work / f"result-torch-{dtype}.json")),
        ),
        before,
        done=(str(rows),),
    )
    for precision in args.precision or PRECISIONS:
        yield from plan_precision(args, machine, precision, (checkpoint, rows, dtype))


def plan_precision(
    args: argparse.Namespace, machine: Machine, precision: str, given: tuple[Path, Path, str]
) -> Iterator[Step]:
    """Yield the steps of one precision: export, and for each flavour compile and measure."""
    checkpoint, rows, dtype = given
    python = str(args.work / "venv" / "bin" / "python")
    ours, speed = (python, "-m", "nvembed_deploy"), (python, "-m", "benchmarks.engine_speed")
    artifact = args.work / f"artifact-{precision}"
    reason = unfit(precision, machine)
    opset = ("--opset", "20") if precision == "fp32" else ()  # no kernel has fp32 attention
    rounding = () if precision in ("fp32", "fp16", "bf16") else ("--rounding", args.rounding)
    export = (*ours, "export", str(checkpoint), str(artifact), "--precision", precision)
    first = "checkpoint" if args.checkpoint is None else "install"
    flavours = ("tensorrt", "tensorrt-rtx") if is_rtx(machine) else ("tensorrt",)
    results = [args.work / f"result-{flavour}-{precision}.json" for flavour in flavours]
    done = (str(artifact / "manifest.json"), str(results[-1]))
    yield Step(f"export-{precision}", (*export, *opset, *rounding), (first,), done, reason)
    for flavour, result in zip(flavours, results, strict=True):
        target = ("--target", f"sm{machine.capability}") if flavour == "tensorrt-rtx" else ()
        compiled, is_done = f"compile-{flavour}-{precision}", (str(result),)
        command = (*ours, "compile", str(artifact), "--engine", flavour, *target)
        yield Step(compiled, command, (f"export-{precision}",), is_done, reason)
        measure = (*speed, str(artifact), "--runtime", flavour, "--reference", str(rows))
        yield Step(
            f"measure-{flavour}-{precision}",
            (*measure, "--repeats", str(args.repeats), "--json", str(result)),
            (compiled, f"reference-torch-{dtype}"),
            is_done,
            reason,
            frees=str(artifact) if flavour == flavours[-1] else None,
        )


def is_rtx(machine: Machine) -> bool:
    """Say whether TensorRT for RTX runs on this GPU."""
    return machine.capability in _RTX_GPUS


def fits(precision: str, machine: Machine) -> bool:
    """Say whether a full-size model's weights fit the GPU, with room."""
    num_bytes = _PARAMETERS * _BITS.get(precision, _DEFAULT_BITS) / 8
    return num_bytes * _ROOM <= machine.memory_mib << 20


def unfit(precision: str, machine: Machine) -> str | None:
    """Say why this GPU cannot run a precision."""
    if precision == "fp8" and int(machine.capability) < 89:  # noqa: PLR2004
        return f"sm{machine.capability} cannot compute in FP8, which begins with sm89"
    if not fits(precision, machine):
        return f"{precision} weights do not fit {machine.memory_mib} MiB"
    return None


def run_all(steps: list[Step], work: Path, *, keep: bool) -> list[Outcome]:
    """Run the steps in order; each prints one line when it ends."""
    outcomes: dict[str, Outcome] = {}
    for step in steps:
        outcomes[step.name] = outcome = run(step, outcomes, work / f"{step.name}.log")
        why = f": {outcome.reason}" if outcome.reason else ""
        say(f"{outcome.status:8} {outcome.seconds:7.0f} s  {step.name}{why}")
        if step.frees and outcome.status == "ok" and not keep:
            shutil.rmtree(step.frees, ignore_errors=True)
    return list(outcomes.values())


def run(step: Step, outcomes: dict[str, Outcome], log: Path) -> Outcome:
    """Run a step, unless it cannot be or was."""
    missing = [need for need in step.needs if outcomes[need].status != "ok"]
    if step.skipped or missing:
        reason = step.skipped or f"needs {', '.join(missing)}"
        return Outcome(step.name, "skipped", reason=reason)
    if any(Path(file).exists() for file in step.done):
        return Outcome(step.name, "ok", reason="done by an earlier run")
    started = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    seconds = round(time.monotonic() - started, 1)
    if done.returncode == 0:
        return Outcome(step.name, "ok", seconds)
    end = " | ".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
    reason = f"exit code {done.returncode}: {end}"
    for place, name in ((log.parent, "WORK"), (ROOT, "REPOSITORY"), (Path.home(), "HOME")):
        reason = reason.replace(str(place), name)  # the result is published
    return Outcome(step.name, "failed", seconds, reason)


def collect(work: Path) -> dict[str, Any]:
    """Return what the measuring steps wrote."""
    found = sorted(work.glob("result-*.json"))
    return {path.stem.removeprefix("result-"): json.loads(path.read_text()) for path in found}


def summary(outcomes: list[Outcome]) -> str:
    """Return how many ended how, and why those that did not run did not."""
    kinds = [outcome.status for outcome in outcomes]
    line = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("ok", "failed", "skipped"))
    bad = [f"  {o.status} {o.name}: {o.reason}" for o in outcomes if o.status != "ok"]
    return "\n".join([line, *bad])


def show(steps: list[Step], machine: Machine, args: argparse.Namespace) -> None:
    """Print the plan."""
    here = "no GPU here; planned for " if machine.assumed else ""
    say(f"{here}{machine.gpu}, sm{machine.capability}, driver {machine.driver}")
    for number, step in enumerate(steps, start=1):
        say(f"\n{number:2}. {step.name}" + (f" (skipped: {step.skipped})" if step.skipped else ""))
        if not step.skipped:
            say(f"    {shlex.join(step.command)}")
    say(f"\nwork in {args.work}, result in {args.out}; nothing was run (--dry-run)")


def say(text: str) -> None:
    """Print a line at once: a run takes hours."""
    print(text, flush=True)  # noqa: T201


def said(command: list[str]) -> str:
    """Return what a command prints; nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
