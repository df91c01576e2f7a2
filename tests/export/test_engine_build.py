"""Tests of nvembed_deploy/export/engine_build.py: the order it takes, and whom it dies with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvembed_deploy.engine_record import Flavour, Profile, Shape
from nvembed_deploy.export.engine_build import Order
from nvembed_deploy.tensorrt_api import Flags


def test_an_order_survives_its_pipe() -> None:
    order = Order(
        flavour=Flavour.TENSORRT,
        graph="a/model.onnx",
        plan="a/x.plan",
        inputs=("input_ids",),
        targets=("sm89",),
        profiles=(Profile("all", Shape(1, 2), Shape(8, 64), Shape(16, 4096)),),
        flags=Flags(strip_weights=True, hardware_compatible="ampere_plus"),
        timing_cache="timings",
    )
    sent = Order.from_json(order.to_json())
    assert (sent.flavour, sent.profiles, sent.flags) == (
        order.flavour,
        order.profiles,
        order.flags,
    )
    assert sent.to_json() == order.to_json()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it lives until its pipe breaks")
def test_the_compiler_dies_with_the_process_that_started_it() -> None:
    starter = (
        "import signal, subprocess, sys\n"
        # as in a terminal: what runs in the background may have been told to ignore it
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "child = subprocess.Popen([sys.executable, '-m', 'nvembed_deploy.export.engine_build'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    reading, writing = os.pipe()  # stays open: the child cannot end by having read all
    parent = subprocess.Popen(
        [sys.executable, "-c", starter], stdin=reading, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    wait_until(lambda: ignores_interrupts(child))
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.exists() or "\nState:\tZ" in (child / "status").read_text())
    os.close(reading)
    os.close(writing)


def ignores_interrupts(process: Path) -> bool:
    lines = (process / "status").read_text().splitlines()
    (ignored,) = (line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
