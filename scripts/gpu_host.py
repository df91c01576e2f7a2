#!/usr/bin/env python3
"""Everything a fresh GPU host can tell about NV-Embed, with one command, into one JSON file.

    python3 scripts/gpu_host.py                        # a random checkpoint of full size
    python3 scripts/gpu_host.py ./NV-Embed-v2          # yours
    python3 scripts/gpu_host.py --minutes 14           # a host that is rented for a quarter hour
    python3 scripts/gpu_host.py --dry-run              # what it would do; runs anywhere

It makes a virtual environment, installs, tries TensorRT on a tiny model, exports the checkpoint in
each precision, compiles an engine of each on this GPU, compares each with the checkpoint in torch
on the same GPU, and measures latency and throughput: the most wanted precisions first. The JSON is
written after each step. A step that fails, or cannot run here, is reported with its reason; those
that do not need it go on. It needs Python 3.11 to 3.13 and nothing else. A second run of the same
goes on where the first one ended; of another checkpoint, code or GPU it begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # of the files beside this one

from gpu_plan import PRECISIONS, Host, plan
from gpu_run import Machine, identity, probe, run_name
from gpu_steps import FAILED, GB, LEFT_OUT, OK, ROOT, SKIPPED, Limits, Outcome, Step, run_all

_MINUTE = 60
_PYTHONS = ((3, 11), (3, 13))
_ENDS = (signal.SIGTERM, signal.SIGHUP)
"""What a host sends before it goes away: cleaned up after as Ctrl-C is."""


class Report:
    """The JSON file: whole at every moment, and no later than the last step that ended."""

    def __init__(self, path: Path, head: dict[str, Any], steps: list[Step], folder: Path) -> None:
        """Begin with no step."""
        self.path, self.outcomes, self._head, self._folder = path, list[Outcome](), head, folder
        self._names = [step.name for step in steps]

    def add(self, outcome: Outcome) -> None:
        """Print one line and write the file."""
        why = f": {outcome.reason}" if outcome.reason else ""
        say(f"{outcome.status:8} {outcome.seconds:7.0f} s  {outcome.name}{why}")
        self.outcomes.append(outcome)
        self.write()

    def write(self) -> None:
        """Write what is known by now."""
        result = self._head | {
            "steps": [asdict(outcome) for outcome in self.outcomes],
            "not_ended": self._names[len(self.outcomes) :],
            "results": collect(self._folder),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path)


def main(argv: list[str] | None = None) -> int:
    """Plan, run, write; exit code 0 if every step that could run in time did well."""
    started = time.monotonic()
    args = parse(argv)
    machine = probe()
    mistake = wrong(args, machine)
    if mistake:
        code, problem, fix = mistake
        sys.stderr.write(f"error: {problem}\nfix: {fix}\n")
        return code
    machine = machine or Machine(assumed=True)
    about = identity(args, machine)
    host = Host(args, machine, args.work / run_name(about))
    steps = list(plan(host))
    args.out = args.out or default_out(host)
    if args.dry_run:
        show(steps, host, about)
        return 0
    host.folder.mkdir(parents=True, exist_ok=True)
    (host.folder / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    say(f"in {host.folder}: {json.dumps(about)}{others(host)}")
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": about["commit"],
        "machine": asdict(machine),
        "checkpoint": about["checkpoint"],
        "run": about,
    }
    until = started + args.minutes * _MINUTE if args.minutes else float("inf")
    limits = Limits(args.step_minutes * _MINUTE, until)
    return run(Report(args.out, head, steps, host.folder), steps, host, limits)


def run(report: Report, steps: list[Step], host: Host, limits: Limits) -> int:
    """Run the steps; whatever ends that, the file is written."""
    try:
        with ended_by_signals():
            run_all(steps, host.folder, limits, report.add, keep=host.args.keep)
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    finally:
        report.write()
        say(f"\nwrote {report.path}\n{summary(report.outcomes)}")
    return 1 if any(outcome.status == FAILED for outcome in report.outcomes) else 0


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let what ends a host raise KeyboardInterrupt; what is ignored (nohup) stays so."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {n: signal.getsignal(n) for n in _ENDS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    parser.add_argument("--out", type=Path, help="JSON (benchmarks/results/gpu-host-DATE-RUN.json)")
    parser.add_argument("--keep", action="store_true", help="keep each artifact (disk!)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    args = parser.parse_args(argv)
    args.work, args.checkpoint = args.work.resolve(), args.checkpoint and args.checkpoint.resolve()
    args.python = args.python and args.python.absolute()  # a venv's is a link: not resolved
    return args


def wrong(args: argparse.Namespace, machine: Machine | None) -> tuple[int, str, str] | None:
    """Return why nothing can be run here, and what to do, after the exit code."""
    if args.dry_run:
        return None
    if machine is None:
        return (
            3,
            "nvidia-smi shows no NVIDIA GPU",
            "run this on a GPU host; --dry-run shows the plan",
        )
    here = sys.version_info[:2]
    if args.python is None and not _PYTHONS[0] <= here <= _PYTHONS[1]:
        return (
            3,
            f"this is Python {here[0]}.{here[1]}, expected 3.11 to 3.13",
            "run this with python3.12; or --python PATH, of an environment with all packages",
        )
    if args.checkpoint is not None and not args.checkpoint.is_dir():
        return (
            2,
            f"{args.checkpoint} is no folder, expected a checkpoint's",
            "name that; or none, for a random one",
        )
    if args.python is not None and not os.access(args.python, os.X_OK):
        return (
            2,
            f"--python {args.python} cannot be run",
            "name the bin/python of an environment that has all packages",
        )
    return None


def default_out(host: Host) -> Path:
    """Return a file that no other run writes."""
    name = f"gpu-host-{time.strftime('%Y-%m-%d')}-{host.folder.name.removeprefix('run-')}.json"
    return ROOT / "benchmarks" / "results" / name


def others(host: Host) -> str:
    """Return what other runs left, for their disk."""
    told = ""
    for folder in sorted(host.args.work.glob("run-*")) + sorted(host.args.work.glob("check*-*")):
        if folder not in (host.folder, host.checkpoint) and folder.is_dir():
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            told += f"\nof other runs: {folder}, {size / GB:.1f} GB; remove it if you need no more"
    return told


def collect(folder: Path) -> dict[str, Any]:
    """Return what the measuring steps wrote; `.partial` is what one wrote that did not end."""
    found = sorted(folder.glob("result-*.json"))
    return {path.stem.removeprefix("result-"): json.loads(path.read_text()) for path in found}


def summary(outcomes: list[Outcome]) -> str:
    """Return how many ended how, and why those that did not run did not."""
    kinds = [outcome.status for outcome in outcomes]
    line = ", ".join(f"{kinds.count(kind)} {kind}" for kind in (OK, FAILED, SKIPPED, LEFT_OUT))
    bad = [f"  {o.status} {o.name}: {o.reason}" for o in outcomes if o.status != OK]
    return "\n".join([line, *bad])


def most_disk_bytes(steps: list[Step], *, keep: bool) -> int:
    """Return the disk that is taken at most at one time."""
    taken = most = 0
    held: dict[str, int] = {}
    exports = {step.command[5]: step for step in steps if step.name.startswith("export-")}
    for step in (step for step in steps if not step.skipped):
        taken += step.disk_bytes
        most = max(most, taken)
        if step.frees and not keep:
            taken -= held.pop(step.frees, exports[step.frees].disk_bytes)
    return most


def show(steps: list[Step], host: Host, about: dict[str, str]) -> None:
    """Print the plan."""
    machine, args = host.machine, host.args
    here = "no GPU here; planned for " if machine.assumed else ""
    say(f"{here}{machine.gpu}, sm{machine.capability}, driver {machine.driver}")
    for number, step in enumerate(steps, start=1):
        disk = f" ({step.disk_bytes / GB:.0f} GB)" if step.disk_bytes else ""
        say(
            f"\n{number:2}. {step.name}" + (f" (skipped: {step.skipped})" if step.skipped else disk)
        )
        if not step.skipped:
            say(f"    {shlex.join(step.command)}")
    most = most_disk_bytes(steps, keep=args.keep) / GB
    there = next(path for path in (args.work, *args.work.parents) if path.exists())
    free = shutil.disk_usage(there).free / GB
    say(
        f"\ndisk: {most:.0f} GB at most at one time, about; {free:.0f} GB are free here"
        "\n      (a step for which there is no room is skipped when it is its turn)"
    )
    say(f"{json.dumps(about)}\nwork in {host.folder}")
    say(f"result in {args.out}; nothing was run (--dry-run)")


def say(text: str) -> None:
    """Print a line at once: a run takes hours."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
