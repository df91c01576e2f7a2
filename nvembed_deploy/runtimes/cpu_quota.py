"""This file owns how many processor threads this process may keep busy.

Neither ONNX Runtime nor torch looks at a quota: on a machine of 64 cores each makes 64 threads, and
a container limited to 4 has spent its share after a sixteenth of each period and then stands still.
Nor does ONNX Runtime, as torch does, look at which processors a process may use (taskset, Slurm, a
cpuset): left to itself it makes a thread for every core of the machine, and moves each to a core of
its own, outside of those too. Source: docs.kernel.org, "Control Group v2", cpu.max, and "CFS
Bandwidth Control", cpu.cfs_quota_us; "How CPU topology info is exported via sysfs",
thread_siblings_list.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_PROCESSORS = Path("/sys/devices/system/cpu")
_PINS = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}
"""With one of these set, importing torch moves this thread to one core: where it may be then does
not say where the process may. Source: gcc.gnu.org, libgomp, "Environment Variables"; tried."""


def quota_threads(own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> int | None:
    """Return how many threads the quota of this process's control groups feeds, rounded up.

    None where there is no quota, or one that all processors of this process do not use up.

    Args:
        own_groups: the process's groups, a line each: "0::/path" (v2), "4:cpu,cpuacct:/path" (v1).
        mount: where the groups are folders.
    """
    shares = [share for folder in _folders(own_groups, mount) for share in _shares(folder)]
    if not shares or min(shares) >= len(_processors()):
        return None
    return math.ceil(min(shares))  # 1.5 feed two threads better than one: docs/performance.md


def bound_cores() -> int | None:
    """Return how many cores the processors have that this process is bound to, None for all."""
    processors = _processors()
    return _num_cores(processors) if len(processors) < (os.cpu_count() or 1) else None


def _processors() -> set[int]:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity") and not os.environ.keys() & _PINS:
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _num_cores(processors: set[int]) -> int:
    """Count cores: two processors of one core share its arithmetic."""
    cores = set()
    for number in processors:
        try:
            cores.add((_PROCESSORS / f"cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(number))
    return len(cores)


def _folders(own_groups: Path, mount: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups for processors, and of all groups around them.

    Inside a container the path may be the host's, of which the mount shows the last part alone.
    """
    try:
        lines = own_groups.read_text("utf-8").splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / "cpu" if controllers else mount
        group = Path(path.lstrip("/"))
        yield from (base / part for part in (group, *group.parents))


def _shares(group: Path) -> Iterator[float]:
    """Yield a group's quota in processors, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue  # no such file: another version, or the root group
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
