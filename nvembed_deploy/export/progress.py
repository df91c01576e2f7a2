"""This file owns how an export shows where it is: named steps, bytes, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from nvembed_deploy.cli import human_seconds

Advance = Callable[[int], None]
_SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """Shows steps. A step's total is in bytes for "weights", in blocks elsewhere."""

    def step(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a step; the context's value is called with each advance."""
        ...

    def note(self, line: str) -> None:
        """Show a line between steps."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """See `Progress`."""
        yield lambda _: None

    def note(self, line: str) -> None:
        """See `Progress`."""


class LogProgress:
    """Writes a line on standard error now and then: for logs, of hours of calibration too."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """See `Progress`. A step of less than half a minute says nothing."""
        started = said = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, said
            done += amount
            now = time.monotonic()
            if total and now - said >= _SECONDS_BETWEEN_LINES:
                said, left = now, (now - started) * (total - done) / max(done, 1)
                took = human_seconds(now - started)
                line = f"{name}: {done / total:.0%} in {took}, about {human_seconds(left)} left"
                _print(line)

        yield advance

    def note(self, line: str) -> None:
        """See `Progress`."""
        _print(line)


class TerminalProgress:
    """Shows bars on standard error through rich: bytes, speed and time left."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """See `Progress`."""
        from rich import progress
        from rich.console import Console

        is_bytes = name == "weights"
        columns: list[progress.ProgressColumn] = [
            progress.TextColumn("{task.description:<12}"),
            progress.BarColumn(bar_width=32),
            progress.DownloadColumn() if is_bytes else progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        ]
        if is_bytes:
            columns.append(progress.TransferSpeedColumn())
        with progress.Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total if total is not None else 1)
            yield lambda amount: bars.advance(task, amount)
            bars.update(task, completed=total if total is not None else 1)

    def note(self, line: str) -> None:
        """See `Progress`."""
        _print(line)


def progress_for(*, is_quiet: bool) -> Progress:
    """Return what suits the command: bars on a terminal, lines in a log."""
    if is_quiet:
        return SilentProgress()
    return TerminalProgress() if sys.stderr.isatty() else LogProgress()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - what this file is for
