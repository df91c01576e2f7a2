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

_TENSOR = re.compile(rb'tensor=\{ [^\n]*? name="([^"]+)"[^\n]*? type=(\w+)')
_NAMED, _KIND = b"={ name=", re.compile(rb"\w+\Z")
"""What all operations have after their kind: finding it once is finding them all."""
_CALL = re.compile(_NAMED + rb"(\w+) ")
_PRODUCT = re.compile(_NAMED + rb'"[^"]*" output=\{[^}]*\} input=\{([^}]*)\}')
_STEP = re.compile(_NAMED + rb'"[^"]*" output=\{"([^"]+)" \} input=\{"([^"]+)"')
_OPERATIONS = {b"function": _CALL, b"fully_connected": _PRODUCT, b"cast": _STEP, b"mul": _STEP}
_ATTENTION = (b"_gemm_mha", b"_gemv_mha")
"""Names of fused attention. Source: pytorch/TensorRT's own tests look for the same."""
_WINDOW_BYTES, _LONGEST_KIND = 1 << 16, 32
"""More than a line of the program has, and than the word for an operation."""
_MOST_STEPS = 8
"""Between a stored weight and its product: casts, and the multiplication by its scale."""
_TYPES = {
    "int4": ("int4", 4),
    "int8": ("int8", 8),
    "fp8_e4m3": ("fp8", 8),
    "half": ("fp16", 16),
    "bf16": ("bf16", 16),
    "float": ("fp32", 32),
}
"""Our name of a plan's type, and its bits."""


def read_plan(path: Path) -> EngineFacts:
    """Return what a plan's bytes say, without holding them in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        types = dict(_tensors(plan))
        operations = list(_operations(plan))
    names = [found[0] for pattern, found in operations if pattern is _CALL]
    products = [found[0] for pattern, found in operations if pattern is _PRODUCT]
    sources = {found[0]: found[1] for pattern, found in operations if pattern is _STEP}
    kinds = Counter(_narrowest(inputs, types, sources) for inputs in products)
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


def _tensors(plan: mmap.mmap) -> Iterator[tuple[bytes, str]]:
    for at in _places(plan, b"tensor={ "):
        if match := _TENSOR.match(plan[at : at + _WINDOW_BYTES]):
            yield match[1], match[2].decode()


def _operations(plan: mmap.mmap) -> Iterator[tuple[re.Pattern[bytes], tuple[bytes, ...]]]:
    for at in _places(plan, _NAMED):
        kind = _KIND.search(plan[max(0, at - _LONGEST_KIND) : at])
        pattern = _OPERATIONS.get(kind[0]) if kind else None
        if pattern and (match := pattern.match(plan[at : at + _WINDOW_BYTES])):
            yield pattern, match.groups()


def _places(plan: mmap.mmap, literal: bytes) -> Iterator[int]:
    """Yield where a literal is: finding one is fast in gigabytes."""
    at = plan.find(literal)
    while at >= 0:
        yield at
        at = plan.find(literal, at + len(literal))


def _narrowest(inputs: bytes, types: dict[bytes, str], sources: dict[bytes, bytes]) -> str:
    """Return the narrowest type that a product's operands are stored in, its weight's.

    A weight that is dequantised in the product's own kernel reaches it through casts.
    """
    found = []
    for operand in re.findall(rb'"([^"]+)"', inputs)[:2]:
        name: bytes | None = operand
        for _ in range(_MOST_STEPS):
            if name is None:
                break
            found.append(_TYPES.get(types.get(name, "")))
            name = sources.get(name)
    return min((f for f in found if f), key=lambda kind: kind[1], default=("unknown", 0))[0]
