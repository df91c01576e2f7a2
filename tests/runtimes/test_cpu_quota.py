"""Threads: as many as a container's quota feeds, and the process's processors have cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvembed_deploy import load_encoder
from nvembed_deploy.runtimes import RuntimeOptions, cpu_quota
from nvembed_deploy.runtimes.cpu_quota import bound_cores, quota_threads


@pytest.fixture(autouse=True)
def sixty_four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quota, "_processors", lambda: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def machine(folder: Path, own_groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the process's groups and the files of a machine's groups."""
    own = folder / "self"
    own.write_text(own_groups)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return own, folder / "cgroup"


V1_FILES = {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own_groups", "files", "threads"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, None),
        ("0::/pod/c\n", {"pod/c/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000\n"}, 2),
        ("7:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n", V1_FILES, 3),
        ("7:cpuset:/\n", V1_FILES, None),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_smallest_quota_around_the_process_counts(
    tmp_path: Path, own_groups: str, files: dict[str, str], threads: int | None
) -> None:
    assert quota_threads(*machine(tmp_path, own_groups, files)) == threads


@pytest.mark.parametrize(
    ("processors", "cores"),
    [({0}, 1), ({0, 1}, 1), ({1, 2, 5}, 3), (set(range(64)), None)],
)
def test_a_process_bound_to_some_processors_has_their_cores(
    processors: set[int], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):  # nothing is said of the others
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-1" if number < 2 else "2-3")
    monkeypatch.setattr(cpu_quota, "_processors", lambda: processors)
    monkeypatch.setattr(cpu_quota, "_PROCESSORS", tmp_path)
    assert bound_cores() == cores


def test_a_quota_above_what_the_process_is_bound_to_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_quota, "_processors", lambda: {0, 1})
    assert quota_threads(*machine(tmp_path, "0::/\n", {"cpu.max": "300000 100000\n"})) is None


def test_torch_keeps_the_threads_that_it_chose_by_itself(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.runtimes.quota_threads", lambda: None)
    monkeypatch.setattr(cpu_quota, "_processors", lambda: {0, 1, 2})
    before = torch.get_num_threads()
    load_encoder(tiny_artifact, "torch", device="cpu").close()
    assert torch.get_num_threads() == before != 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
def test_an_encoder_stays_on_the_processors_of_its_process(tiny_artifact: Path) -> None:
    code = f"""
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from nvembed_deploy import load_encoder
encoder = load_encoder({str(tiny_artifact)!r}, "onnx", device="cpu")
for task in os.listdir("/proc/self/task"):
    assert len(os.sched_getaffinity(int(task))) == 1
    assert os.sched_getaffinity(int(task)) == os.sched_getaffinity(0), "a thread has moved away"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"])
def test_a_thread_that_openmp_moved_to_one_core_does_not_tell_the_processs(name: str) -> None:
    code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # as libgomp does when torch is imported
from nvembed_deploy.runtimes.cpu_quota import bound_cores
assert bound_cores() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {name: "set"})


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert quota_threads(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("options", "threads"), [(None, 3), (RuntimeOptions(threads=5), 5)])
def test_an_encoder_takes_as_many_threads_as_the_quota_feeds_unless_told(
    options: RuntimeOptions | None,
    threads: int,
    tiny_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nvembed_deploy.runtimes.quota_threads", lambda: 3)
    with load_encoder(tiny_artifact, "onnx", device="cpu", options=options) as encoder:
        session = encoder.runtime._session.get_session_options()
    assert session.intra_op_num_threads == threads


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_this_machines_own_groups_can_be_read() -> None:
    code = "from nvembed_deploy.runtimes.cpu_quota import quota_threads as q; print(q())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None" or int(run.stdout) >= 1
