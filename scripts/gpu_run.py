"""This file owns what tells one run of scripts/gpu_host.py from another: machine, model, code.

It needs the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpu_steps import ROOT

_RTX_GPUS = ("75", "80", "86", "89", "120", "121")
_SOURCES = (
    *("nvembed_deploy/**/*.py", "benchmarks/*.py", "scripts/gpu_plan.py"),
    *("constraints.txt", "pyproject.toml"),
)


@dataclass(frozen=True)
class Machine:
    """The GPU, as nvidia-smi tells; `assumed` where there is none and a plan is wanted anyway."""

    gpu: str = "NVIDIA H100 80GB HBM3"
    driver: str = "580.0"
    capability: str = "90"
    memory_mib: int = 81559
    assumed: bool = False

    @property
    def is_rtx(self) -> bool:
        """Whether TensorRT for RTX runs on this GPU."""
        return self.capability in _RTX_GPUS

    @property
    def flavours(self) -> tuple[str, ...]:
        """The products that run on it."""
        return ("tensorrt", "tensorrt-rtx") if self.is_rtx else ("tensorrt",)


def probe() -> Machine | None:
    """Ask nvidia-smi about the first GPU."""
    keys = "name,driver_version,compute_cap,memory.total"
    told = said(["nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader,nounits"])
    if not told:
        return None
    gpu, driver, capability, memory = map(str.strip, told.splitlines()[0].rsplit(",", 3))
    # A GPU without memory of its own (GB10, in DGX Spark) says [N/A]: it has the machine's.
    mib = int(memory) if memory.isdecimal() else system_memory_mib()
    return Machine(gpu, driver, capability.replace(".", ""), mib)


def system_memory_mib() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def identity(args: argparse.Namespace, machine: Machine) -> dict[str, str]:
    """Return what decides a result: where one of these differs, no earlier result counts."""
    return {
        "checkpoint": _checkpoint(args.checkpoint) or f"random, {args.layers} layers",
        "rounding": args.rounding,
        "repeats": f"{args.repeats}, {args.seconds:g} s at most",
        "commit": said(["git", "-C", str(ROOT), "rev-parse", "HEAD"]) or "unknown",
        "code": code()[:16],
        "gpu": f"{machine.gpu}, driver {machine.driver}",
        "environment": f"given, {_digest(str(args.python))}" if args.python else "made",
    }


def run_name(about: dict[str, str]) -> str:
    """Return the name of a run's folder."""
    return f"run-{_digest(json.dumps(about))}"


@cache
def code() -> str:
    """Return a digest of the code that is measured: a commit says nothing of what was changed."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _checkpoint(folder: Path | None) -> str | None:
    """Return a checkpoint's name, and a digest of its files' names, sizes and times."""
    if folder is None:
        return None
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    facts = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in found]
    return f"{folder.name}, {_digest(json.dumps([str(folder), facts]))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def said(command: list[str]) -> str:
    """Return what a command prints; nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
