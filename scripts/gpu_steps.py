"""This file owns how the steps of scripts/gpu_host.py run: in order, within their time and disk.

A step is a command in a process group of its own, so that it can be stopped with all its children.
It needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GB = 10**9
OK, FAILED, SKIPPED, LEFT_OUT = "ok", "failed", "skipped", "left out"
_LOG_LINES = 3
_PATIENCE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, None))
"""How a step is asked to end, and the seconds until it is asked less politely. SIGINT comes first:
our commands then remove what is half written."""


@dataclass(frozen=True)
class Step:
    """One command. It is skipped where one that it needs did not end well."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    needs_any: tuple[str, ...] = ()
    """Steps of which one at least must have ended well."""
    done: tuple[str, ...] = ()
    """Files that, all there, say that an earlier run did it; each appears whole or not at all."""
    serves: tuple[str, ...] = ()
    """Results that it is for: where all are there already, it has nothing to do."""
    marks: str | None = None
    """A file to write once it has ended well, for a command that leaves no such file itself."""
    skipped: str | None = None
    """Why this machine cannot run it."""
    frees: str | None = None
    """A folder that nothing later needs."""
    disk_bytes: int = 0
    """What it writes, and what follows beside it until that is freed."""


@dataclass
class Outcome:
    """How a step ended: ok, failed, skipped or left out (for lack of time), and why."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """How long a step may take, and until when (of `time.monotonic`) any step may."""

    step_seconds: float
    until: float = float("inf")

    @property
    def seconds_left(self) -> float:
        """Until nothing may run any more."""
        return self.until - time.monotonic()


OnEnd = Callable[[Outcome], None]


def run_all(
    steps: Sequence[Step], folder: Path, limits: Limits, on_end: OnEnd, *, keep: bool
) -> None:
    """Run the steps in order.

    What a step frees is freed however that step ended, but not where time was over: the next run
    goes on from it.

    Args:
        steps: each needs earlier ones only.
        folder: of their logs.
        limits: of their time.
        on_end: called with the outcome of each.
        keep: free nothing.
    """
    outcomes: dict[str, Outcome] = {}
    for step in steps:
        outcomes[step.name] = outcome = run_step(step, outcomes, folder, limits)
        if step.frees and outcome.status != LEFT_OUT and not keep:
            shutil.rmtree(step.frees, ignore_errors=True)
        on_end(outcome)


def run_step(step: Step, outcomes: dict[str, Outcome], folder: Path, limits: Limits) -> Outcome:
    """Run a step, unless it cannot be or was."""
    if step.skipped:
        return Outcome(step.name, SKIPPED, reason=step.skipped)
    if any(files and all(Path(f).exists() for f in files) for files in (step.done, step.serves)):
        return Outcome(step.name, OK, reason="done by an earlier run")
    if limits.seconds_left <= 0:
        return Outcome(step.name, LEFT_OUT, reason="no time left (--minutes)")
    reason = _missing(step, outcomes) or _too_little_disk(step, folder)
    if reason:
        return Outcome(step.name, SKIPPED, reason=reason)
    outcome = _run(step, folder, limits)
    if step.marks and outcome.status == OK:
        Path(step.marks).touch()
    return outcome


def _missing(step: Step, outcomes: dict[str, Outcome]) -> str | None:
    bad = [need for need in step.needs if outcomes[need].status != OK]
    if bad:
        return f"needs {', '.join(bad)}"
    if step.needs_any and all(outcomes[need].status != OK for need in step.needs_any):
        return f"needs {' or '.join(step.needs_any)}"
    return None


def _too_little_disk(step: Step, folder: Path) -> str | None:
    free = shutil.disk_usage(folder).free
    if step.disk_bytes <= free:
        return None
    return f"needs {step.disk_bytes / GB:.0f} GB of disk, {free / GB:.0f} GB are free"


def _run(step: Step, folder: Path, limits: Limits) -> Outcome:
    log, started = folder / f"{step.name}.log", time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            return Outcome(step.name, FAILED, reason=_published(str(error), folder))
        try:
            code: int | None = process.wait(min(limits.step_seconds, limits.seconds_left))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:  # an interrupt comes by here too
                stop(process)
    seconds = round(time.monotonic() - started, 1)
    if code == 0:
        return Outcome(step.name, OK, seconds)
    if code is None and limits.seconds_left <= 0:
        reason = f"stopped after {seconds:.0f} s: no time left (--minutes)"
        return Outcome(step.name, LEFT_OUT, seconds, reason)
    how = f"stopped after {seconds:.0f} s (--step-minutes)" if code is None else f"exit code {code}"
    end = " | ".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
    return Outcome(step.name, FAILED, seconds, _published(f"{how}: {end}", folder))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: politely, then less so."""
    for number, patience in _PATIENCE:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children that it left


def _published(reason: str, folder: Path) -> str:
    """Return a reason without this machine's paths: the result is published."""
    named = ((folder, "RUN"), (folder.parent, "WORK"), (ROOT, "REPOSITORY"), (Path.home(), "HOME"))
    for place, name in named:
        reason = reason.replace(str(place), name)
    return reason
