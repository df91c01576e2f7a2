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
_STEP = re.compile(rb' (?:cast|mul)=\{ name="[^"]*" output=\{"([^"]+)" \} input=\{"([^"]+)"')
_ATTENTION = (b"_gemm_mha", b"_gemv_mha")
"""Names of fused attention. Source: pytorch/TensorRT's own tests look for the same."""
_WINDOW_BYTES = 1 << 16
"""More than a line of the program has."""
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
        names = [match[1] for match in _found(plan, b"function={ name=", _CALL)]
        types = {m[1]: m[2].decode() for m in _found(plan, b"tensor={ ", _TENSOR)}
        products = [match[1] for match in _found(plan, b"fully_connected={ name=", _PRODUCT)]
        sources = {
            match[1]: match[2]
            for literal in (b" cast={ name=", b" mul={ name=")
            for match in _found(plan, literal, _STEP)
        }
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
