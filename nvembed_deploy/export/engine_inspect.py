"""This file owns what can be read from a plan's bytes, on a machine that cannot load it.

A plan holds its program as text, an operation a line: `function={ name=_gemm_mha_v2 ... }` is an
attention layer in one kernel, `fully_connected={ ... input={...} }` a matrix product, `tensor={
name="..." type=half }` what it works on. Source: plans of TensorRT for RTX 1.7.1, for SM89 and
SM120; other versions may write none of it, and then nothing is counted.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from nvembed_deploy.engine_record import EngineFacts

_CALL = re.compile(rb"function=\{ name=(\w+) ")
_PRODUCT = re.compile(rb'fully_connected=\{ name="[^"]*" output=\{[^}]*\} input=\{([^}]*)\}')
_TENSOR = re.compile(rb'tensor=\{ [^\n]*? name="([^"]+)"[^\n]*? type=(\w+)')
_ATTENTION = (b"_gemm_mha", b"_gemv_mha")
"""Names of fused attention. Source: pytorch/TensorRT's own tests look for the same."""
_WINDOW_BYTES = 1 << 16
"""More than a line of the program has."""
_TYPES = {"half": "fp16", "bfloat16": "bf16", "float": "fp32", "fp8_e4m3": "fp8"}


def read_plan(path: Path) -> EngineFacts:
    """Return what a plan's bytes say, without holding them in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        names = [match[1] for match in _found(plan, b"function={ name=", _CALL)]
        types = {m[1]: m[2].decode() for m in _found(plan, b"tensor={ ", _TENSOR)}
        products = [match[1] for match in _found(plan, b"fully_connected={ name=", _PRODUCT)]
    kinds = Counter(_weight_type(inputs, types) for inputs in products)
    return EngineFacts(
        fused_attention=sum(name.startswith(_ATTENTION) for name in names),
        linears=dict(sorted(kinds.items())),
        kernels=len(names) + len(products),
    )


def read_layers(layers: Iterable[str]) -> EngineFacts:
    """Return what the engine inspector says, on a machine that can load the plan."""
    names = list(layers)
    marks = tuple(mark.decode() for mark in _ATTENTION)
    fused = sum(any(mark in name for mark in marks) for name in names)
    return EngineFacts(fused_attention=fused, linears={}, kernels=len(names))


def _found(
    plan: mmap.mmap, literal: bytes, pattern: re.Pattern[bytes]
) -> Iterator[re.Match[bytes]]:
    """Yield the pattern's matches at each place of a literal: finding that is fast in gigabytes."""
    at = plan.find(literal)
    while at >= 0:
        match = pattern.match(plan[at : at + _WINDOW_BYTES])
        if match:
            yield match
        at = plan.find(literal, at + len(literal))


def _weight_type(inputs: bytes, types: dict[bytes, str]) -> str:
    """Return the type of a product's constant operand, else of the first one known."""
    names = re.findall(rb'"([^"]+)"', inputs)
    constant_first = sorted(names[:2], key=lambda name: not name.endswith(b"_dconst"))
    known = [types[name] for name in constant_first if name in types]
    return _TYPES.get(known[0], known[0]) if known else "unknown"
