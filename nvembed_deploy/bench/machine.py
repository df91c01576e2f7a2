"""This file owns the facts of a machine without which a measured time says nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvembed_deploy.installed import installed

_PACKAGES = (
    "nvembed-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Return processor, cores that may be used, memory, load, GPUs and Python."""
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [f for f in _FLAGS if f in _cpuinfo("flags").split()],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": [round(value, 2) for value in os.getloadavg()],
        "gpus": _nvidia_smi("--query-gpu=name"),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    return installed(_PACKAGES)


def gpu_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Return the GPU memory that processes hold, by id, as the driver counts it."""
    wanted, held = set(pids), {}
    for line in _nvidia_smi("--query-compute-apps=pid,used_memory"):
        pid, _, mebibytes = line.partition(",")
        if pid.strip().isdecimal() and mebibytes.strip().isdecimal() and int(pid) in wanted:
            held[int(pid)] = int(mebibytes) << 20
    return held


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _nvidia_smi(query: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
