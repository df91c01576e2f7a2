"""Tests of nvembed_deploy/train/data/lock.py: one writer at a time, and the dead hold nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.lock import hold
from nvembed_deploy.train.data.rows import write_rows

KILLED = """
import os, signal, sys
from pathlib import Path
from nvembed_deploy.train.data.lock import hold
path = Path(sys.argv[1])
file = path.open("w")
hold(file, path)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_told_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with path.open("w") as file, pytest.raises(InputError, match=f"another run is writing {path}"):
        hold(file, path)
    process.kill()
    process.communicate()
    with path.open("w") as file:
        hold(file, path)


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        with pytest.raises(InputError, match="another run is writing"):
            write_rows(tmp_path / "out.jsonl", [{"a": 2}])
        yield {"a": 3}

    assert write_rows(tmp_path / "out.jsonl", rows()) == 2
    assert (tmp_path / "out.jsonl").read_text() == '{"a": 1}\n{"a": 3}\n'
