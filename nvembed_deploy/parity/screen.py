"""This file owns what the parity command shows on a terminal: tables, a bar, what would be run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvembed_deploy import cli
from nvembed_deploy.parity.suite import count_texts, count_words

if TYPE_CHECKING:
    from nvembed_deploy.parity.check import Tasks
    from nvembed_deploy.parity.subject import Advance
    from nvembed_deploy.parity.verdict import TaskParity, Verdict


def show(verdict: Verdict) -> None:
    """Print a verdict and its numbers."""
    from rich.table import Table

    title = f"precision {verdict.precision}, margin {verdict.margins.score:g}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", min_width=3)
    table.add_column("task", overflow="fold")  # a narrow screen breaks names, not numbers
    for name in ("reference", "artifact", "difference", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in verdict.tasks:
        table.add_row(*_cells(task))
    found = verdict.embedding
    answer = "[green]yes[/]: it may replace" if verdict.passed else "[red]no[/]: it may not replace"
    with cli.console() as console:
        console.print(table)
        console.print(
            f"{found.texts} texts: cosine mean {found.mean_cosine:.6f}, min "
            f"{found.min_cosine:.6f}; nearest ten agree {found.neighbours:.1%}, queries in the "
            f"reference's index {found.cross_neighbours:.1%}\nbatch drift "
            f"{found.batch_drift:.1e}, long text {found.long_cosine:.6f}"
        )
        if verdict.trace:
            console.print("\n".join(verdict.trace.lines()), highlight=False)
        console.print(f"{answer} the reference")
        for note in verdict.basis.notes if verdict.basis else []:
            console.print(f"note: {note}", highlight=False)


def _cells(task: TaskParity) -> tuple[str, ...]:
    """Return a task's row. Its name may hold what rich takes for a colour."""
    from rich.markup import escape

    return (
        "[green]yes[/]" if task.passed else "[red]no[/]",
        escape(task.name),
        f"{task.reference:.4f}",
        f"{task.candidate:.4f}",
        f"{task.difference:+.4f}",
        task.between,
    )


def describe(tasks: Tasks, sides: str) -> None:
    """Print what would be measured, on which sides.

    Raises:
        InputError: mteb knows no such task or benchmark, or a name is taken.
    """
    from nvembed_deploy.parity.mteb_encoder import instruction_of, prepare

    found = prepare(tasks.local, tasks.named)
    counts = [f"{count_texts(task):>7,} texts" for task in tasks.local]
    counts += ["texts unknown"] * (len(found) - len(counts))
    for task, count in zip(found, counts, strict=True):
        cli.say(
            f"{task.metadata.name:<32} {task.metadata.type:<20} {count}  "
            f"instruction: {instruction_of(task) or '(none)'}"
        )
    words = sum(count_words(task) for task in tasks.local)
    unknown = ", and those of mteb's tasks, whose data are fetched" if tasks.named else ""
    cli.say(f"{tasks.texts:,} texts, about {words * 3 // 2:,} tokens{unknown}, on {sides}")


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """Draw a bar of texts while the block runs; 0 where it is not known how many there are."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("texts"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total or None)
        yield lambda count: bars.advance(task, count)
