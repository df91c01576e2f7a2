"""This file owns that one process at a time writes into an artifact that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.filelock import wait_for
from nvembed_deploy.manifest import LAYOUT


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Wait until no other process writes into an artifact: an engine, a verdict.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    engines = path / LAYOUT.engines
    try:
        engines.mkdir(exist_ok=True)
        handle = os.open(engines / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ArtifactError(
            f"{engines} cannot be written: {error}", "work on a copy of the artifact that can be"
        ) from error
    try:
        wait_for(handle)
        yield
    finally:
        os.close(handle)
