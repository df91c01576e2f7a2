"""This file owns how an export shows where it is: named steps, bytes, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows steps. A step's total is in bytes for "weights", in blocks elsewhere."""

    def step(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin a step; the context's value is called with each advance."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        """See `Progress`."""
        yield lambda _: None


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
