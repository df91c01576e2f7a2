"""This file owns the gate: how many times better ours must be than a competitor in the same run.

Times of two runs, or of two machines, cannot be compared; the ratio of two sides in one run can.
The floors are a TOML file, written from a measurement with a tolerance for noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nvembed_deploy.bench.mixes import REAL, SHAPES, mix_name
from nvembed_deploy.bench.report import MixNumbers, Report
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.tomlfile import read_toml

_OF_A_MIX = ("speed", "latency")
MEASURES = (*_OF_A_MIX, "memory", "cold-start")


@dataclass(frozen=True)
class Floor:
    """What one ratio must not fall below. Above 1 ours is better, whatever the measure.

    Attributes:
        ours: the side that must not get worse.
        against: the side it is held against.
        measured: the ratio when the floor was set.
        tolerance: how far below it noise may take it, as a share.
        measure: one of `MEASURES`; latency is the median of single texts.
        mix: of speed and latency.
    """

    ours: str
    against: str
    measured: float
    tolerance: float
    measure: str = "speed"
    mix: str = ""

    @property
    def value(self) -> float:
        """The floor itself."""
        return self.measured * (1 - self.tolerance)


@dataclass(frozen=True)
class Verdict:
    """A floor and what was found; None where the run does not have its mix, or a side failed."""

    floor: Floor
    got: float | None

    @property
    def passed(self) -> bool:
        """Whether the ratio is not below its floor; one that was not measured is not."""
        return self.got is None or self.got >= self.floor.value


def read_floors(path: Path) -> list[Floor]:
    """Read the `[[ratio]]` tables of a TOML file.

    Raises:
        RecipeError: it cannot be read, or a table is not what it should be.
    """
    tables = read_toml(path, "ratios", see="benchmarks/ratios.toml").get("ratio")
    if not isinstance(tables, list) or not tables:
        raise RecipeError(f"{path} has no [[ratio]] table", "see benchmarks/ratios.toml")
    return [_floor(table, f"{path}, ratio {number}") for number, table in enumerate(tables, 1)]


def judge(report: Report, floors: list[Floor]) -> list[Verdict]:
    """Hold a run against the floors."""
    return [Verdict(floor, _ratio(report, floor)) for floor in floors]


def check_floors(floors: Sequence[Floor], sides: Sequence[str], mixes: Iterable[str]) -> None:
    """Check before a run that it can be held against the floors; it may leave out mixes.

    Raises:
        RecipeError: a floor is of a side or mix that is not known, or all are of mixes left out.
    """
    measured = [mix_name(mix) for mix in mixes]
    known = list(dict.fromkeys([*SHAPES, REAL, *measured]))
    for floor in floors:
        for name in (floor.ours, floor.against):
            if name not in sides:
                raise RecipeError(
                    f"a ratio is of the side {name!r}, and the run has {', '.join(sides)}",
                    "name the run's sides as the file does (NAME=PATH, --against), or take it out",
                )
        if floor.mix and floor.mix not in known:
            raise RecipeError(
                f"a ratio is of the mix {floor.mix!r}, expected one of {', '.join(known)}",
                "correct it, or measure that mix: --mix FILE.jsonl",
            )
    if floors and all(f.measure in _OF_A_MIX and f.mix not in measured for f in floors):
        raise RecipeError("the run has no mix that a ratio is of", "name one of theirs: --mix")


def _floor(table: Any, where: str) -> Floor:  # noqa: ANN401 - TOML data
    known = {field.name for field in fields(Floor)}
    try:
        floor = Floor(**table)
        is_sound = floor.measured > 0 and 0 <= floor.tolerance < 1
        is_sound &= bool(floor.mix) or floor.measure not in _OF_A_MIX
    except TypeError:
        is_sound = False
    if not is_sound or floor.measure not in MEASURES:
        raise RecipeError(
            f"{where} is {table!r}",
            f"give {', '.join(sorted(known))}; measure is one of {', '.join(MEASURES)}, measured "
            "is above 0, tolerance from 0 to below 1; speed and latency are of a mix",
        )
    return floor


def _ratio(report: Report, floor: Floor) -> float | None:
    pair = (floor.ours, floor.against)
    if floor.measure in _OF_A_MIX:
        mix = next((m for m in report.mixes if m.name == floor.mix), None)
        return _mix_ratio(mix, floor) if mix and set(pair) <= set(mix.sides) else None
    if not set(pair) <= set(report.sides):
        return None
    seen = "cold_start_seconds" if floor.measure == "cold-start" else "peak_bytes"
    ours, theirs = (getattr(report.sides[name], seen) for name in pair)
    return None if ours is None or theirs is None else theirs / ours


def _mix_ratio(mix: MixNumbers, floor: Floor) -> float:
    ours, theirs = mix.sides[floor.ours], mix.sides[floor.against]
    if floor.measure == "latency":
        return theirs.latency_ms["p50"] / ours.latency_ms["p50"]
    rounds = zip(theirs.seconds, ours.seconds, strict=True)
    return statistics.median(their / our for their, our in rounds)
