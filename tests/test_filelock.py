"""Tests of nvembed_deploy/filelock.py: one holder at a time, and the dead hold nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvembed_deploy.filelock import lock, wait_for

HOLDER = """
import os, sys
from nvembed_deploy.filelock import lock
print(lock(os.open(sys.argv[1], os.O_RDONLY)), flush=True)
sys.stdin.read()
"""


WAITER = """
import os, sys
from pathlib import Path
from nvembed_deploy.filelock import lock, wait_for
handle = os.open(sys.argv[1], os.O_RDONLY)
try:
    lock(handle)
except BlockingIOError:
    print("held", flush=True)
print(wait_for(handle), Path(sys.argv[2]).exists(), flush=True)
"""
"""Prints whether it has the lock, and whether the holder's end had come before."""


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


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    place, ended = tmp_path / "file", tmp_path / "ended"
    place.touch()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    scripts = ([HOLDER, str(place)], [WAITER, str(place), str(ended)])
    commands = [[sys.executable, "-c", *script] for script in scripts]
    holder = subprocess.Popen(commands[0], **pipes)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True\n"
    waiter = subprocess.Popen(commands[1], **pipes)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == b"held\n"
    ended.touch()
    holder.kill()
    holder.communicate()
    assert waiter.communicate()[0] == b"True True\n"


def test_nobody_waits_for_a_lock_that_nobody_holds(tmp_path: Path) -> None:
    for _ in range(2):
        handle = os.open(tmp_path, os.O_RDONLY)
        assert wait_for(handle)
        os.close(handle)
