"""This file owns what the processor must have for 8-bit products to be exact."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BYTE_DOTS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def lacks_byte_dots(cpuinfo: Path = _CPUINFO, machine: str | None = None) -> bool:
    """Tell whether an x86 processor is known to lack VNNI and AMX.

    Without them ONNX Runtime adds two products of an unsigned and a signed byte in 16 bits, which
    saturate (onnxruntime.ai, docs/performance/model-optimizations/quantization, "When should I use
    reduce-range"). Other processors add in 32 bits.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64") or not cpuinfo.exists():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    return flags is not None and not _BYTE_DOTS & set(flags[1].split())
