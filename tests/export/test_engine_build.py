"""Tests of nvembed_deploy/export/engine_build.py: the order it takes, and whom it dies with."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from nvembed_deploy.engine_record import Flavour, Profile, Shape
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export.engine_build import Order, _keep, _plan_file, build
from nvembed_deploy.tensorrt_api import Api, Flags


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


@pytest.mark.parametrize("inspector", [ValueError, RuntimeError], ids=["not loaded", "fails"])
def test_a_plan_is_inspected_from_its_file_when_the_builder_is_gone(
    tmp_path: Path, inspector: type[Exception]
) -> None:
    """Each holds the weights: together with the plan in memory they would be three models.

    An inspection that fails does not cost the plan.
    """
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    builders: list[weakref.ref[Any]] = []
    seen: list[tuple[type, Any]] = []

    class Builder(trt.Builder):  # type: ignore[misc, name-defined]
        def __init__(self, logger: Any) -> None:
            super().__init__(logger)
            builders.append(weakref.ref(self))

        def __del__(self) -> None:
            """The bindings' own only warns."""

    class Runtime:
        """What full TensorRT has on a machine with a GPU; here it sees what it is given."""

        def __init__(self, _logger: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: Any) -> None:
            seen.append((type(plan), builders[0]()))
            if inspector is not ValueError:
                raise inspector("as a binding that is given a null pointer")

    module = SimpleNamespace(**vars(trt) | {"Builder": Builder, "Runtime": Runtime})
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "S"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "one", [x], [y])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "x.onnx")
    order = Order(
        flavour=Flavour.TENSORRT,
        graph=str(tmp_path / "x.onnx"),
        plan=str(tmp_path / "x.plan"),
        inputs=("x",),
        profiles=(Profile("all", Shape(1, 2), Shape(1, 8), Shape(2, 16)),),
    )
    events: list[dict[str, Any]] = []
    build(order, Api(Flavour.TENSORRT, module), events.append)
    assert "done" in events[-1]
    assert seen == [(mmap.mmap, None)]


def test_a_plan_that_lies_shorter_on_the_disk_than_it_was_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk that fails without saying so."""
    synced = os.fsync

    def lose(handle: int) -> None:
        synced(handle)
        os.ftruncate(handle, 3)

    monkeypatch.setattr(os, "fsync", lose)
    order = Order(Flavour.RTX, plan=str(tmp_path / "x.plan"))
    with (
        pytest.raises(ArtifactError, match="got 3 bytes on the disk, expected 4"),
        _plan_file(order) as plan,
    ):
        assert plan.write(b"plan") == 4


def test_timings_that_cannot_be_kept_do_not_cost_the_plan(tmp_path: Path) -> None:
    (tmp_path / "timings").mkdir()
    _keep(tmp_path / "timings", b"as where the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["timings"]


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
