"""This file owns what this process can know of the machine's memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path


def available_bytes() -> int:
    """Return the memory that can be taken without swapping: the machine's, or the container's."""
    machine = _proc_bytes("/proc/meminfo", "MemAvailable:") or os.sysconf(
        "SC_PAGE_SIZE"
    ) * os.sysconf("SC_PHYS_PAGES")
    return min(machine, _cgroup() or machine)


def peak_bytes() -> int:
    """Return the largest resident size this process has had.

    The kernel's own mark where it has one: on Linux getrusage begins with what the parent had.
    """
    if (mark := _proc_bytes("/proc/self/status", "VmHWM:")) is not None:
        return mark
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Return freed memory to the system; glibc would keep up to some 200 MB of a streamed model."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _proc_bytes(file: str, key: str) -> int | None:
    """Return what a file of /proc says of `key`, in kB there; None where it does not."""
    try:
        lines = Path(file).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(key)]
    return int(found[0].split()[1]) * 1024 if found else None


def _cgroup() -> int | None:
    """Return what a cgroup v2 limit leaves, where there is one."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used), 0)
