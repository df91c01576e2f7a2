"""This file owns how many processor threads a container may keep busy.

Neither ONNX Runtime nor torch looks: on a machine of 64 cores each makes 64 threads, and a
container limited to 4 has spent its share after a sixteenth of each period and then stands still.
Source: docs.kernel.org, "Control Group v2", cpu.max, and "CFS Bandwidth Control", cpu.cfs_quota_us.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def quota_threads(own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> int | None:
    """Return how many threads the quota of this process's control groups feeds, rounded up.

    None where there is no quota, or one that all processors of this process do not use up.

    Args:
        own_groups: the process's groups, a line each: "0::/path" (v2), "4:cpu,cpuacct:/path" (v1).
        mount: where the groups are folders.
    """
    shares = [share for folder in _folders(own_groups, mount) for share in _shares(folder)]
    if not shares or min(shares) >= _num_processors():
        return None
    return math.ceil(min(shares))  # 1.5 feed two threads better than one: docs/performance.md


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
