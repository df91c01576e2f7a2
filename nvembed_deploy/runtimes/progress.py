"""This file owns the progress bar of `encode`: when it shows, and that it needs rich."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from nvembed_deploy.errors import MissingPackageError

# Work that ends sooner needs no bar, unless one is asked for.
QUIET_SECONDS = 2.0


@contextmanager
def progress_bar(total: int | None, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield `advance(num_texts)`.

    Args:
        total: texts in all; None where that is not known.
        show: True shows a bar, False none; None shows one when this package logs at INFO or
            below, rich is installed and the work takes more than `QUIET_SECONDS`.

    Raises:
        MissingPackageError: a bar is asked for and rich is not installed.
    """
    has_rich = find_spec("rich") is not None
    if show and not has_rich:
        raise MissingPackageError(
            "show_progress_bar=True needs rich, which is not installed",
            "pip install rich, or leave show_progress_bar out",
        )
    is_verbose = logging.getLogger("nvembed_deploy").isEnabledFor(logging.INFO)
    if show or (show is None and is_verbose and has_rich):
        with _rich_bar(total, 0.0 if show else QUIET_SECONDS) as advance:
            yield advance
    else:
        yield lambda _num_texts: None


@contextmanager
def _rich_bar(total: int | None, quiet_seconds: float) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("encode", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task, start = bar.add_task("encode", total=total), time.monotonic()

    def advance(num_texts: int) -> None:
        if not bar.live.is_started and time.monotonic() - start >= quiet_seconds:
            bar.start()
        bar.update(task, advance=num_texts)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
