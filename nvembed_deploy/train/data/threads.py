"""This file owns work in several threads at a time, which Ctrl-C leaves behind at once.

The pool of `concurrent.futures` waits for its threads even when Python ends, and these may wait
minutes for a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], count: int
) -> Iterator[Result]:
    """Yield the results of all items as they come.

    An error of one is raised when the items under way are done; no other is begun. Where the caller
    stops before that (KeyboardInterrupt), nobody waits for those under way.

    Args:
        work: done on each item, in any thread.
        items: taken up in their order.
        count: of threads.
    """
    todo: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[Result | Exception] = SimpleQueue()
    for item in items:
        todo.put(item)

    threads = [
        Thread(target=_take_up, args=(work, todo, done), daemon=True)
        for _ in range(min(count, len(items)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            result = done.get()
            if isinstance(result, Exception):
                for thread in threads:
                    thread.join()
                raise result
            yield result
    finally:
        _forget(todo)


def _take_up(
    work: Callable[[Item], Result], todo: SimpleQueue[Item], done: SimpleQueue[Result | Exception]
) -> None:
    for item in _emptied(todo):
        try:
            done.put(work(item))
        except Exception as error:  # raised in the caller's thread
            _forget(todo)
            done.put(error)


def _emptied(todo: SimpleQueue[Item]) -> Iterator[Item]:
    while True:
        try:
            yield todo.get_nowait()
        except Empty:
            return


def _forget(todo: SimpleQueue[Item]) -> None:
    for _ in _emptied(todo):
        pass
