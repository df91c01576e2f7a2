"""This file owns what Ctrl-C does to a run: the step under way is ended and saved first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(*, alone: bool = True) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; the second time it is at once.

    Outside the main thread it is not ours; and of several processes (not `alone`) each would end
    another step: there it interrupts as ever.
    """
    if not alone or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print("stopping after this step; once more to stop now", file=sys.stderr)  # noqa: T201

    if before is signal.default_int_handler:  # an ignored one stays ignored
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
