"""This file owns that no two runs write one file: the lock of an open file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Any

from nvembed_deploy.errors import InputError

if sys.platform != "win32":
    import fcntl


def hold(file: IO[Any], path: Path) -> None:
    """Lock a file until it is closed or this process ends, however it ends.

    Raises:
        InputError: another run holds it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run is writing {path}", "wait for it, or name another place"
        ) from None
    except OSError:  # a network disk without locks: work on, unlocked
        return
