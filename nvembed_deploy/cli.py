"""This file owns what every command line here shares: exit codes, error lines, human sizes.

0 done, 1 a check failed, 2 bad input, 3 a package or hardware is missing, 130 interrupted, 143 told
to end (`kill`, `timeout`, `docker stop`).
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nvembed_deploy.errors import (
    HardwareError,
    InputError,
    NVEmbedError,
    RecipeError,
    is_out_of_memory,
)

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[[argparse.Namespace], None]

_UNIT, _MOST_SECONDS = 1024, 1e9


def run(command: Command, args: argparse.Namespace) -> int:
    """Run a command and turn its errors into two lines on standard error and an exit code."""
    try:
        with _ended_by_sigterm():
            command(args)
        print(end="", flush=True)  # noqa: T201 - a broken pipe shows here; stdout may be closed
    except KeyboardInterrupt as error:
        print("interrupted; nothing half-written was left", file=sys.stderr)  # noqa: T201
        return 128 + (signal.SIGTERM if isinstance(error, _Ended) else signal.SIGINT)
    except BrokenPipeError:
        _forget_output()
        return 0
    except Exception as error:
        told = _in_words(error)
        if told is None or getattr(args, "traceback", False):
            raise
        print(f"error: {told.problem}\nfix: {told.fix}", file=sys.stderr)  # noqa: T201
        _let_go_of_output()
        return told.exit_code
    return 0


def _forget_output() -> None:
    """Go on without standard output: its reader (head, less) went away, no error of ours."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _let_go_of_output() -> None:
    """Write what is waiting where it can be: at its end Python would, and make the code 120."""
    try:
        print(end="", flush=True)  # noqa: T201
    except OSError:
        _forget_output()


def _in_words(error: Exception) -> NVEmbedError | None:
    """Return what a user can do something about; None for a bug of ours."""
    if isinstance(error, NVEmbedError):
        return error
    if isinstance(error, OSError):
        return InputError(str(error), "check path, permissions and space")
    if is_out_of_memory(error):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "free some, or take a smaller model, smaller batches, shorter texts, another device"
        return HardwareError(f"not enough memory: {reason}", fix)
    return None


class _Ended(KeyboardInterrupt):
    """SIGTERM: cleaned up after as Ctrl-C is."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `_Ended`; not where others handle it, or outside the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows where an error was raised."""
    parser.add_argument("--traceback", action="store_true", help="show Python tracebacks")


def positive(text: str, *, least: int = 1) -> int:
    """Read an option's whole number, as argparse calls it."""
    if not text.isdecimal() or int(text) < least:
        problem = f"got {text!r}, expected a whole number of at least {least}"
        raise argparse.ArgumentTypeError(problem)
    return int(text)


seed = partial(positive, least=0)
"""Reads --seed."""


def check_out(option: str, path: Path | None) -> None:
    """Refuse, before anything is computed, what could not be written in the end.

    Raises:
        InputError: the path is a folder, or its folder does not exist.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        problem = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"{option} {path} {problem}", "name a file in a folder that exists")


def check_folder(what: str, path: Path) -> None:
    """Refuse, before anything is computed, a folder that could not be made or written in the end.

    Raises:
        InputError: a file lies there, or it may not be written.
    """
    found = existing(path)
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        raise InputError(
            f"{what} {path} cannot be made: {found} is no folder that may be written",
            "name a folder that may be written",
        )


def existing(path: Path) -> Path:
    """Return a path, or the nearest of its parents that is there."""
    path = path.resolve()
    return next(p for p in (path, *path.parents) if p.exists())


def prompts(pairs: Iterable[str]) -> dict[str, str]:
    r"""Read an option's named prefixes, `NAME=PREFIX` each; \n is a line break.

    Raises:
        RecipeError: one has no name.
    """
    found = {}
    for pair in pairs:
        name, separator, prefix = pair.partition("=")
        if not separator or not name:
            raise RecipeError(
                f"--prompt {pair!r} is no NAME=PREFIX", "write --prompt query='Instruct: '"
            )
        found[name] = prefix.replace("\\n", "\n")
    return found


def number(text: str, *, least: float = 0.0) -> float:
    """Read an option's number, as argparse calls it: as large as seconds may be, no larger."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= _MOST_SECONDS:
        problem = f"got {text!r}, expected a number from {least:g} to {_MOST_SECONDS:g}"
        raise argparse.ArgumentTypeError(problem)
    return value


def human_bytes(count: float) -> str:
    """Return a size as people write it: 812 B, 14.6 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _UNIT or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _UNIT
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """Return a time as people say it: 95 s, 38 min, 2 h 38 min."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 2:  # noqa: PLR2004 - up to two hours minutes are easier to read
        return f"{60 * hours + minutes} min"
    return f"{hours} h {minutes} min"


@contextmanager
def console(pipe_width: int | None = None, **options: Any) -> Iterator[Console]:  # noqa: ANN401
    """Yield rich's console; what it was given is said at the end, if anybody still reads.

    By itself rich fails on what the encoding has not, and where the reader went away ends the
    process with code 1, which is a gate's; who decides a gate must hear of neither.

    Args:
        pipe_width: columns where no terminal says how many; None: rich's own choice.
        options: of rich's Console.
    """
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:  # it flushes what was said before, too
            _forget_output()

    opened = Ours(**options)
    if pipe_width and not opened.file.isatty():
        opened.width = pipe_width
    with opened.capture() as shown:
        yield opened
    say_to_any("\n".join(line.rstrip() for line in shown.get().splitlines()))


def say_to_any(text: str) -> None:
    """Print a result as `say` does, and go on where nobody reads it: a gate has yet to decide."""
    try:
        say(text)
        print(end="", flush=True)  # noqa: T201
    except BrokenPipeError:
        _forget_output()


def say(text: str) -> None:
    """Print a result to standard output; what its encoding has not, as an escape."""
    try:
        print(text)  # noqa: T201 - this is where printing lives
    except UnicodeEncodeError as error:
        shown = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
        print(shown)  # noqa: T201
