"""This file owns how a batch meets an engine: its profile, its padded shape, in how many runs.

A small batch is padded further than its profile asks, to one of few shapes: shapes that repeat can
be replayed as one CUDA graph, and its padding is nearly free where reading the weights is what
takes the time. A large batch keeps its shape. Legend: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.errors import InputError

REPEATED_TOKENS = 1024
"""Up to here a batch is padded to a repeated shape. At 206 tokens an H200 computes as long as it
reads the weights (batching.py); a forward pass of 32 layers launches some hundred kernels."""
_SEQUENCE_GRAIN, _LARGE_GRAIN = 16, 8
"""Tokens that lengths are rounded up to. Source: half-precision products want multiples of 8."""
_STEPS = 3
"""Shapes per doubling, as a power of 2: 8 of them, so that at most an eighth is padding."""


@dataclass(frozen=True)
class Launch:
    """One run of an engine.

    Attributes:
        profile: index of its optimisation profile.
        shape: what the engine is given, padding included.
        start, stop: rows of the batch.
        is_repeated: whether the shape is one of the few that come again.
    """

    profile: int
    shape: Shape
    start: int
    stop: int
    is_repeated: bool


def fill_rows(
    padded_BS: NDArray[np.int64], array_BS: NDArray[np.int64], launch: Launch
) -> NDArray[np.int64]:
    """Write a launch's rows of a batch's array into the launch's shape, and return that.

    A row that is padding has one token, attended and averaged: a row without any would be a softmax
    over nothing.
    """
    num_texts = launch.stop - launch.start
    padded_BS[...] = 0
    padded_BS[:num_texts, : array_BS.shape[1]] = array_BS[launch.start : launch.stop]
    padded_BS[num_texts:, 0] = 1
    return padded_BS


def plan_launches(shape: Shape, profiles: Sequence[Profile]) -> list[Launch]:
    """Return the runs that compute a batch: one, or several of fewer rows where none holds it.

    Raises:
        InputError: the texts are longer than any profile takes.
    """
    most = max((p.max.batch for p in profiles if p.max.sequence >= shape.sequence), default=0)
    if most == 0:
        longest = max(profile.max.sequence for profile in profiles)
        raise InputError(
            f"a batch is {shape.sequence} tokens long, the engine takes {longest}",
            "shorten the texts, or compile an engine with a longer profile",
        )
    runs = -(-shape.batch // most)
    size = -(-shape.batch // runs)
    return [
        _launch(start, min(start + size, shape.batch), shape.sequence, profiles)
        for start in range(0, shape.batch, size)
    ]


def choose_profile(shape: Shape, profiles: Sequence[Profile]) -> int:
    """Return the profile that holds a shape and is tuned for the nearest one."""
    holding = [index for index, profile in enumerate(profiles) if profile.holds(shape)]
    return min(holding, key=lambda index: _distance(shape, profiles[index].opt))


def exact_profile(shape: Shape, profiles: Sequence[Profile]) -> int | None:
    """Return the profile for a shape that cannot be padded, or None."""
    taking = [p for p in profiles if p.holds(shape) and _clip(shape, p) == shape]
    return profiles.index(taking[choose_profile(shape, taking)]) if taking else None


def repeated_shape(shape: Shape, profile: Profile) -> tuple[Shape, bool]:
    """Return the shape to pad a batch to, and whether it is one of the repeated ones."""
    small = shape.batch * shape.sequence <= REPEATED_TOKENS
    sequence = _round_up(shape.sequence, _SEQUENCE_GRAIN) if small else _large(shape.sequence)
    batch = _round_up(shape.batch, 1) if small else shape.batch
    return _clip(Shape(batch, sequence), profile), small


def _launch(start: int, stop: int, sequence: int, profiles: Sequence[Profile]) -> Launch:
    shape = Shape(stop - start, sequence)
    profile = choose_profile(shape, profiles)
    padded, is_repeated = repeated_shape(shape, profiles[profile])
    return Launch(profile, padded, start, stop, is_repeated)


def _distance(shape: Shape, opt: Shape) -> float:
    return abs(log2(shape.batch / opt.batch)) + abs(log2(shape.sequence / opt.sequence))


def _round_up(size: int, grain: int) -> int:
    step = max(grain, 1 << max(0, (size - 1).bit_length() - 1 - _STEPS))
    return -(-size // step) * step


def _large(sequence: int) -> int:
    return -(-sequence // _LARGE_GRAIN) * _LARGE_GRAIN


def _clip(shape: Shape, profile: Profile) -> Shape:
    bounds = zip(shape, profile.min, profile.max, strict=True)
    return Shape(*(min(max(size, low), high) for size, low, high in bounds))
