"""This file owns the ways a linear can be quantised, and which linears of a model get which.

All are symmetric with zero point 0 and one scale for each output channel (or block of inputs), the
form TensorRT takes as strongly typed; the tensors in between stay in the graph's own precision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from shlex import quote

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.spec import Precision

RANK_MULTIPLE = 16
"""Engines take FP8 products of multiples of 16 inputs."""
WIDER = 3
"""Inputs of a linear's product for each principal direction, after those of the rest."""
_SMALLEST_BLOCK = 16
"""Of inputs that share a scale: ONNX Runtime's and TensorRT's kernels take none below it."""
SMALLEST_ROW = 1e-4
"""Rows below it are divided by it instead: float16 has 1/1e-4, and such a row is all but zero."""


class Code(StrEnum):
    """The numbers that quantised weights are stored in."""

    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def greatest(self) -> int:
        """The largest value used: the integers' range is symmetric, FP8 is E4M3."""
        return {Code.INT8: 127, Code.INT4: 7, Code.FP8: 448}[self]


class Activations(StrEnum):
    """What happens to a quantised linear's input."""

    FLOAT = "float"
    """Nothing: only the weight is quantised."""
    ROW = "row"
    """Each token is divided by its own largest value first, and its output multiplied by it: a
    range per token with constant scales only (ReduceMax, Div, Q, DQ, MatMul, Mul)."""
    STATIC = "static"
    """One calibrated range for the whole tensor: the cheapest, and the coarsest."""


class Kernels(StrEnum):
    """Whose operators the graph is written in."""

    STANDARD = "standard"
    """ONNX's own: any engine."""
    CPU = "cpu"
    """ONNX Runtime's on the CPU, where its 8-bit products have an unsigned left side."""


class Rounding(StrEnum):
    """How weights are rounded to codes."""

    NEAREST = "nearest"
    """Each to the nearest code: no texts needed, seconds."""
    COMPENSATED = "compensated"
    """On calibration texts, so that later weights make up for earlier ones' rounding."""


@dataclass(frozen=True)
class LinearFormat:
    """How one linear is stored and computed; `block` inputs share a scale, all where it is None."""

    code: Code
    activations: Activations
    block: int | None = None
    rank: int = 0
    """Principal directions of its input that are rounded to two numbers each (`principal.py`); of a
    narrow input no more than a quarter."""


@dataclass(frozen=True)
class Scheme:
    """A named way to quantise a model."""

    linear: LinearFormat
    rotates: bool
    """Whether outlier channels are spread by an exact rotation first (see `rotation.py`)."""
    kernels: Kernels = Kernels.STANDARD
    measures: bool = False
    """Whether calibration finds which linears need a range per token (see `row_ranges.py`)."""
    precision: Precision = Precision.FP16
    """The number format of everything else."""
    kept: LinearFormat | None = None
    """How linears that are kept are stored; None: in that number format."""


SCHEMES = {
    "fp8": Scheme(LinearFormat(Code.FP8, Activations.ROW), rotates=False),
    "int8": Scheme(LinearFormat(Code.INT8, Activations.ROW), rotates=True, measures=True),
    "int8-cpu": Scheme(
        LinearFormat(Code.INT8, Activations.ROW),
        rotates=True,
        kernels=Kernels.CPU,
        measures=True,
        precision=Precision.FP32,
    ),
    "int8-weight": Scheme(LinearFormat(Code.INT8, Activations.FLOAT), rotates=True),
    "int4-weight": Scheme(
        LinearFormat(Code.INT4, Activations.FLOAT, block=128),
        rotates=True,
        kept=LinearFormat(Code.INT8, Activations.FLOAT),
    ),
}
"""What --precision names beside the number formats; docs/numerics.md has the measurements.
FP8 rounds relative to each value, so spreading outliers gains nothing there and costs precision."""


@dataclass(frozen=True)
class Formats:
    """Which format each linear has.

    `linear`, but `kept` for names that match a pattern of `keep`. Where `linear` has a range per
    token, inputs of names that match no pattern of `per_token` have one range instead.
    """

    linear: LinearFormat | None = None
    keep: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ("*",)
    kept: LinearFormat | None = None

    def of(self, name: str, num_inputs: int) -> LinearFormat | None:
        """Return a linear's format; None is the graph's own precision.

        No directions are rounded twice where inputs have no range per token, and no more than a
        quarter of an input.

        Raises:
            RecipeError: no block size divides the number of inputs.
        """
        if self.linear is None:
            return None
        if _matches(name, self.keep):
            return self.kept
        form = self.linear
        if form.activations is Activations.ROW and not _matches(name, self.per_token):
            form = replace(form, activations=Activations.STATIC)
        if form.block is not None:
            block = _block(num_inputs, form.block)
            if block < _SMALLEST_BLOCK:
                raise _undivided({name: num_inputs}, form.block, self.keep)
            form = replace(form, block=block)
        is_by_row = form.activations is Activations.ROW
        most = num_inputs // 4 // RANK_MULTIPLE * RANK_MULTIPLE if is_by_row else 0
        return replace(form, rank=min(form.rank, most))

    def check_blocks(self, inputs: Mapping[str, int]) -> None:
        """Refuse linears that cannot be rounded in blocks: all of them at once.

        Args:
            inputs: how many each linear of the model has.

        Raises:
            RecipeError: no block size divides the inputs of some that are not kept.
        """
        largest = self.linear.block if self.linear is not None else None
        if largest is None:
            return
        undivided = {
            name: count
            for name, count in inputs.items()
            if not _matches(name, self.keep) and _block(count, largest) < _SMALLEST_BLOCK
        }
        if undivided:
            raise _undivided(undivided, largest, self.keep)


def check_patterns(key: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a pattern that means no linear: mistyped, it would change a model in silence.

    Raises:
        RecipeError: a pattern of the recipe's `key` matches none of the linears' names.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=3, cutoff=0.6) or names[:3]
            raise RecipeError(
                f"{key} has {pattern!r}, which no linear of this model is called",
                f"linears are called {', '.join(near)}, ...; * stands for any part",
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _block(num_inputs: int, largest: int) -> int:
    """Return the largest block size that divides the inputs; a small one cannot be used."""
    block = largest
    while num_inputs % block:
        block //= 2
    return block


def _undivided(inputs: Mapping[str, int], largest: int, keep: Iterable[str]) -> RecipeError:
    counts: dict[str, int] = {}
    for name, count in inputs.items():  # all layers alike are one pattern
        counts[re.sub(r"\.\d+\.", ".*.", name) if len(inputs) > 1 else name] = count
    patterns = list(dict.fromkeys([*keep, *counts]))
    told = ", ".join(f"{name} has {count} inputs" for name, count in counts.items())
    return RecipeError(
        f"{told}, which no block size from {_SMALLEST_BLOCK} to {largest} divides",
        f"keep them in 8 bit: {' '.join(f'--keep {quote(p)}' for p in patterns)}; or in a recipe "
        f"keep = {json.dumps(patterns)}",
    )
