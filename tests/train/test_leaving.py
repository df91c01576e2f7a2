"""Tests of nvembed_deploy/train/leaving.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvembed_deploy.train.leaving import leave_group

ROOT = Path(__file__).parents[2]
SLOW_THREAD = """
import threading, time
from types import SimpleNamespace
from nvembed_deploy.train.leaving import leave_group

freed = []
def free():
    time.sleep(0.05)  # as a thread of gloo that comes late
    freed.append(1)
threading.Thread(target=free, daemon=True).start()
leave_group(SimpleNamespace(num_processes=2, end_training=lambda: None))
print(len(freed))
"""


def test_threads_that_come_late_still_have_an_interpreter() -> None:
    command = [sys.executable, "-c", SLOW_THREAD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("num_processes", "waits"), [(1, False), (2, True)])
def test_only_a_group_is_waited_for(num_processes: int, waits: bool) -> None:
    ended: list[int] = []
    accelerator = SimpleNamespace(num_processes=num_processes, end_training=lambda: ended.append(1))
    started = time.monotonic()
    leave_group(accelerator)
    assert ended == [1]
    assert (time.monotonic() - started > 0.1) is waits
