"""Tests of nvembed_deploy/tensorrt_api.py: progress that only grows, and one vocabulary."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import HardwareError, MissingPackageError
from nvembed_deploy.tensorrt_api import MODULES, Api, Phases, gpu_name, gpu_target, load_api
from tests.runtimes.host_gpu import HostDriver


def test_a_phase_inside_another_counts_as_part_of_its_step() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    phases.complete("build", 0)
    assert phases.fraction == 0.25
    phases.start("tune", "build", 2)
    phases.complete("tune", 0)
    assert phases.fraction == 0.375
    phases.finish("tune")
    phases.complete("build", 1)
    assert phases.fraction == 0.5


def test_progress_never_shrinks_and_never_passes_the_end() -> None:
    phases, seen = Phases(), []
    phases.start("build", None, 2)
    for name, steps in (("a", 3), ("b", 1), ("a", 0)):
        phases.start(name, "build", steps)
        for step in range(steps + 2):
            phases.complete(name, step)
            seen.append(phases.fraction)
        phases.finish(name)
        phases.complete("build", 0)
    phases.complete("never begun", 7)
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] <= 1


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingPackageError, match=flavour) as caught:
            load_api(flavour)
        assert caught.value.fix == f"pip install 'nvembed-deploy[{flavour}]'"
        assert caught.value.exit_code == 3


def test_a_package_whose_libraries_are_absent_is_told_apart(tmp_path, monkeypatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(HardwareError, match=r"libnvinfer\.so\.11"):
        load_api(Flavour.TENSORRT)


def test_the_gpu_is_named_as_targets_are() -> None:
    target = gpu_target()
    assert target is None or target.removeprefix("sm").isdecimal()


def test_the_first_gpu_is_told_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: HostDriver(b"NVIDIA L4", (8, 9)))
    assert (gpu_target(), gpu_name()) == ("sm89", "NVIDIA L4")


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert (gpu_target(), gpu_name()) == (None, None)


def test_rtx_lists_the_gpus_that_it_builds_for() -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    api = load_api(Flavour.RTX)
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(api.targets)
    assert api.version[0].isdecimal()


@pytest.mark.parametrize("known", [b"", b"of this GPU", b"of another GPU", b"of another version"])
def test_a_build_has_timings_whatever_is_known(known: bytes) -> None:
    """As NVIDIA's page on IBuilderConfig has it: what it refuses is not taken in part."""

    class Config:
        taken: str | None = None

        def create_timing_cache(self, data: bytes) -> str | None:
            return None if b"version" in data else data.decode()

        def set_timing_cache(self, cache: str, ignore_mismatch: bool) -> bool:
            is_taken = ignore_mismatch or "another" not in cache
            self.taken = cache if is_taken else None
            return is_taken

    config: Any = Config()
    timings = Api(Flavour.TENSORRT, None).timings(config, known)
    assert timings == config.taken == ("" if b"another" in known else known.decode())
