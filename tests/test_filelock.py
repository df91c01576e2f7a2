"""Tests of nvembed_deploy/filelock.py: one holder at a time, and the dead hold nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvembed_deploy.filelock import lock

HOLDER = """
import os, sys
from nvembed_deploy.filelock import lock
print(lock(os.open(sys.argv[1], os.O_RDONLY)), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_one_processs_until_it_dies(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "file" if kind == "file" else tmp_path
    if kind == "file":
        place.touch()
    command = [sys.executable, "-c", HOLDER, str(place)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    handle = os.open(place, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        lock(handle)
    process.kill()
    process.communicate()
    assert lock(handle)
    os.close(handle)
