"""This file owns that no two runs write one file of training data."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.filelock import lock


def hold(file: IO[Any], path: Path) -> None:
    """Lock a file until it is closed or this process ends, however it ends.

    Raises:
        InputError: another run holds it.
    """
    try:
        lock(file.fileno())
    except BlockingIOError:
        raise InputError(
            f"another run is writing {path}", "wait for it, or name another place"
        ) from None
