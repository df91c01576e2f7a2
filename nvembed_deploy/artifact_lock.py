"""This file owns that one process at a time writes into an artifact, and into no other one.

An export with `--overwrite` waits for nobody: it puts another artifact in the place of one that is
being written into, and what is written then must not go into the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed_deploy.errors import ArtifactError, NVEmbedError
from nvembed_deploy.filelock import wait_for
from nvembed_deploy.manifest import LAYOUT


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Wait until no other process writes into an artifact: an engine, a verdict.

    Raises:
        ArtifactError: the folder cannot be written, or its engines lie elsewhere.
    """
    engines = path / LAYOUT.engines
    try:
        handle = _open(path)
    except OSError as error:
        raise ArtifactError(
            f"{engines} cannot be written: {error}", "work on a copy of the artifact that can be"
        ) from error
    try:
        wait_for(handle)
        yield
    finally:
        os.close(handle)


def is_writable(path: Path) -> bool:
    """Say whether `sole_writer` could write into an artifact."""
    try:
        os.close(_open(path))
    except (ArtifactError, OSError):
        return False
    return True


@contextmanager
def unreplaced(path: Path) -> Iterator[Callable[[], None]]:
    """Yield a check that a folder is still the one that it was when the block was entered.

    Raises:
        ArtifactError: it is not, by the check or when the block fails, which may be why.
    """
    before = _identity(path)

    def check() -> None:
        if _identity(path) != before:
            raise ArtifactError(
                f"{path} was replaced or removed while it was written into",
                "run the command again, for the artifact that lies there now",
            )

    try:
        yield check
    except (NVEmbedError, OSError):
        check()
        raise


def _open(path: Path) -> int:
    """Open the lock's file, which lies with the engines."""
    engines = path / LAYOUT.engines
    if not engines.resolve().is_relative_to(path.resolve()):
        raise ArtifactError(
            f"{engines} leads to {engines.resolve()}, outside the artifact: no engine there would "
            "be used",
            f"remove that link; or make a copy with the files themselves: cp -rL {path}",
        )
    engines.mkdir(exist_ok=True)
    return os.open(engines / ".lock", os.O_CREAT | os.O_RDWR, 0o644)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from any other that gets its name; None if it is gone."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
