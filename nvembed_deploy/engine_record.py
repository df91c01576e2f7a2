"""This file owns what an artifact says about a TensorRT engine: for whom it is, what it takes.

An engine (a plan) is compiled for one version of TensorRT and some GPUs; it takes batches whose
shape lies inside one of its optimisation profiles. The record says both, so that a plan is never
loaded to find out.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class Flavour(StrEnum):
    """The two products that compile plans; neither runs the other's."""

    TENSORRT = "tensorrt"
    """Tunes on the GPU that it builds for: data-centre GPUs, SM90 and SM100 among them."""
    RTX = "tensorrt-rtx"
    """Builds for other GPUs than this machine's, or without one; runs on SM75 to SM121."""


class Shape(NamedTuple):
    """Texts in a batch, and tokens of the longest one, padding included."""

    batch: int
    sequence: int


@dataclass(frozen=True)
class Profile:
    """The batches an engine takes: from `min` to `max`, at its best at `opt`."""

    name: str
    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        """Refuse what no batch could meet.

        Raises:
            ValueError: a size is below 1, or the three are not in order.
        """
        if not self.name:
            raise ValueError("a profile has no name")
        for axis in Shape._fields:
            low, best, high = (getattr(shape, axis) for shape in (self.min, self.opt, self.max))
            if not 1 <= low <= best <= high:
                raise ValueError(
                    f"profile {self.name!r}: {axis} is {low}, {best}, {high} (min, opt, max), "
                    "expected 1 <= min <= opt <= max"
                )

    def holds(self, shape: Shape) -> bool:
        """Say whether a batch fits once it is padded to `min`."""
        return shape.batch <= self.max.batch and shape.sequence <= self.max.sequence

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Profile:
        """Build a profile from plain data: a name, and three pairs.

        Raises:
            ValueError: a key is missing or unknown, or a value cannot be used.
        """
        expected = {"name", "min", "opt", "max"}
        if not isinstance(data, dict) or set(data) != expected:
            raise ValueError(f"got profile {data!r}, expected the keys {sorted(expected)}")
        shapes = {key: _shape(data, key) for key in ("min", "opt", "max")}
        if not isinstance(data["name"], str):
            raise ValueError(f"profile name is {data['name']!r}, expected a string")  # noqa: TRY004
        return cls(name=data["name"], **shapes)


@dataclass(frozen=True)
class EngineFacts:
    """What was compiled, read from the plan itself.

    Attributes:
        fused_attention: attention layers that run as one kernel, over all profiles.
        linears: matrix products by the type of their weights, over all profiles.
        kernels: kernels in all.
    """

    fused_attention: int
    linears: dict[str, int]
    kernels: int


@dataclass(frozen=True)
class EngineRecord:
    """Everything an artifact says about one engine.

    Attributes:
        flavour: the product that compiled it, and that runs it.
        version: of that product.
        targets: GPUs it runs on: "sm89", ..., or "portable".
        profiles: batches it takes, in the plan's own order.
        facts: what the plan holds.
        seconds: how long the build took.
        options: what else shaped it.
        gpu: the one GPU model that it was tuned on and may run on, by NVIDIA's name; None where any
            of `targets` may, and in records from before this was written down.
    """

    flavour: Flavour
    version: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    facts: EngineFacts
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    gpu: str | None = None

    def compile_command(self, artifact: Path) -> str | None:
        """Say how to compile it anew, under its name; None if only a recipe can ask for it."""
        if self.options.get("hardware_compatible"):
            return None
        words = ["compile", str(artifact), "--engine", self.flavour.value]
        if self.flavour is Flavour.RTX and "portable" not in self.targets:
            words += ["--target", ",".join(self.targets)]
        words += [f"--{name.replace('_', '-')}" for name, value in self.options.items() if value]
        where = f", on {self.gpu or ', '.join(self.targets)}"
        return (
            f"nvembed-deploy {shlex.join([*words, '--overwrite'])}"
            f"{where if self.flavour is Flavour.TENSORRT else ''}"
        )

    @property
    def summary(self) -> str:
        """Say what was compiled and for what, in one line."""
        facts, count = self.facts, len(self.profiles)
        linears = ", ".join(f"{number} {name}" for name, number in facts.linears.items())
        profiles = ", ".join(
            f"{p.name} up to {p.max.batch}x{p.max.sequence}" for p in self.profiles
        )
        return (
            f"{self.flavour} {self.version} for {', '.join(self.targets)}; "
            f"{facts.fused_attention} fused attentions and {linears or 'unknown'} linears "
            f"over {count} profiles ({profiles})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EngineRecord:
        """Build a record from `to_dict`'s data.

        Raises:
            TypeError: a key is missing or unknown.
            ValueError: a value cannot be used.
        """
        parsed = {
            "flavour": Flavour(str(data.get("flavour"))),
            "targets": tuple(data.get("targets", ())),
            "profiles": tuple(Profile.from_dict(p) for p in data.get("profiles", ())),
            "facts": EngineFacts(**data.get("facts", {})),
        }
        return cls(**{**data, **parsed})


def _shape(data: dict[str, Any], key: str) -> Shape:
    pair = data[key]
    is_pair = isinstance(pair, list | tuple) and len(pair) == len(Shape._fields)
    if not is_pair or not all(type(size) is int for size in pair):
        raise ValueError(f"profile {data['name']!r}: {key} is {pair!r}, expected [texts, tokens]")
    return Shape(*pair)
