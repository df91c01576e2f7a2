"""This file owns which shapes are kept for replay: those seen before, the latest few of them.

Recording a shape costs several runs, so that a shape which never comes again is not recorded. It
knows nothing of GPUs; what is kept is the caller's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

_REMEMBERED = 8
"""Shapes seen once that are remembered, for each one that may be kept."""


class ReplayCache(Generic[T]):
    """Keeps at most `limit` recordings, the least recently used gives way."""

    def __init__(self, limit: int) -> None:
        """Start empty; a limit of 0 keeps nothing."""
        self._limit, self._is_stopped = limit, False
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self._kept)

    def get(self, key: Hashable) -> T | None:
        """Return the recording of a shape, if there is one."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def wants(self, key: Hashable) -> bool:
        """Note that a shape was met; say whether to record it, which is from the second time on."""
        if self._limit == 0 or self._is_stopped:
            return False
        is_known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > self._limit * _REMEMBERED:
            self._seen.popitem(last=False)
        return is_known

    def keep(self, key: Hashable, recording: T) -> T | None:
        """Keep a recording; return the one that gave way, for the caller to free."""
        self._kept[key] = recording
        if len(self._kept) <= self._limit:
            return None
        # Seen again, it is recorded no sooner than a new shape: recording costs several runs.
        gone, freed = self._kept.popitem(last=False)
        self._seen.pop(gone, None)
        return freed

    def stop(self) -> None:
        """Want no further shapes; those that are kept stay."""
        self._is_stopped = True

    def clear(self) -> list[T]:
        """Forget all recordings and return them."""
        kept = list(self._kept.values())
        self._kept.clear()
        self._seen.clear()
        return kept
