"""This file owns what a run tells: one JSON line a step, a live line in the terminal, the curves.

log.jsonl is the record; what is drawn or tracked elsewhere is made of it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from nvembed_deploy.staging import replace_text

LOG, CURVES = "log.jsonl", "curves.png"
_SMOOTHING = 0.95


@dataclass(frozen=True)
class StepRecord:
    """What one step did. `seconds` is its own, `tokens` without padding."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    truncated: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Return whether the step was taken: one whose loss or gradient is not finite is not."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Journal:
    """Appends records to log.jsonl."""

    def __init__(self, out: Path, step: int) -> None:
        """Open the log and drop what is later than `step`: those steps are done again."""
        self._path = out / LOG
        kept = [r for r in read_log(out) if r.step <= step]
        replace_text(self._path, "".join(json.dumps(asdict(r)) + "\n" for r in kept))

    def add(self, record: StepRecord) -> None:
        """Write a step."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def read_log(out: Path) -> list[StepRecord]:
    """Read a run's log; a line cut by a kill is left out."""
    path = out / LOG
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(StepRecord(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return records


class PlainView:
    """A line of text every few steps, for logs and pipes."""

    def __init__(self, steps: int, every: int) -> None:
        """Show each `every`-th of `steps`, and the last."""
        self._steps, self._every = steps, every
        self._tokens, self._seconds = 0, 0.0

    def show(self, record: StepRecord) -> None:
        """Print the step, if it is its turn."""
        self._tokens += record.tokens
        self._seconds += record.seconds
        if record.step % self._every and record.step != self._steps:
            return
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        print(  # noqa: T201 - the terminal view
            f"step {record.step}/{self._steps}  loss {record.loss:.4f}  "
            f"grad {record.gradient_norm:.3f}  lr {record.learning_rate:.2e}  "
            f"{speed:,.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )


class LiveView:
    """One line that is kept up to date: loss, gradient norm, speed, time left."""

    def __init__(self, steps: int, done: int) -> None:
        """Begin at `done` of `steps`."""
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.BarColumn(bar_width=10),  # all of it fits 80 columns
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bars.add_task("", total=steps, completed=done, numbers="")
        self._loss = math.nan

    def __enter__(self) -> Self:
        """Show the line."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        self._bars.stop()

    def show(self, record: StepRecord) -> None:
        """Bring the line up to date."""
        if record.is_finite:
            last = record.loss if math.isnan(self._loss) else self._loss
            self._loss = _SMOOTHING * last + (1 - _SMOOTHING) * record.loss
        numbers = (
            f"loss {self._loss:.4f}  grad {record.gradient_norm:.2f}  "
            f"{record.tokens / max(record.seconds, 1e-9):,.0f} tok/s"
        )
        self._bars.update(self._task, completed=record.step, numbers=numbers)


View = PlainView | LiveView


@contextmanager
def open_view(steps: int, done: int, every: int) -> Iterator[View]:
    """Choose the live line in a terminal, plain lines elsewhere; nothing if `every` is 0."""
    if not every or not sys.stderr.isatty():
        yield PlainView(steps, every)
        return
    with LiveView(steps, done) as view:
        yield view


def draw_curves(out: Path) -> Path | None:
    """Draw loss, gradient norm and speed of a run as curves.png; None if matplotlib is missing."""
    records = [r for r in read_log(out) if r.is_finite]
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    if not records:
        return None
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    steps = [r.step for r in records]
    series = {
        "loss": [r.loss for r in records],
        "gradient norm": [r.gradient_norm for r in records],
        "tokens per second": [r.tokens / max(r.seconds, 1e-9) for r in records],
    }
    for panel, (name, values) in zip(panels, series.items(), strict=True):
        panel.plot(steps, values, color="#9bb8d3", linewidth=0.8)
        panel.plot(steps, _smooth(values), color="#1f4e79", linewidth=1.6)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
    panels[-1].set_xlabel("step")
    figure.suptitle(out.name)
    figure.savefig(out / CURVES, dpi=120)
    return out / CURVES


def _smooth(values: list[float]) -> list[float]:
    """Return the exponential mean, corrected for its beginning."""
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smoothed.append(mean / weight)
    return smoothed
