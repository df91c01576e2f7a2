"""This file owns that no two processes write one place: the lock of an open file or folder."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import fcntl


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed or this process ends, however it ends.

    Returns:
        Whether it is locked: Windows and some network disks know no such locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    return _take(handle, waits=False)


def wait_for(handle: int) -> bool:
    """Lock as `lock` does, but wait while another process holds it.

    Returns:
        Whether it is locked: Windows and some network disks know no such locks.
    """
    return _take(handle, waits=True)


def _take(handle: int, *, waits: bool) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a network disk without locks: work on, unlocked
        return False
    return True
