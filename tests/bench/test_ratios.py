"""The gate: floors from a file, held against one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nvembed_deploy.bench.ratios import MEASURES, Floor, check_floors, judge, read_floors
from nvembed_deploy.bench.report import SideStart
from nvembed_deploy.errors import RecipeError
from tests.bench import made

ROOT = Path(__file__).parents[2]
SPEED = Floor("ours", "theirs", measured=2.0, tolerance=0.25, mix="queries")


def test_the_speed_ratio_is_the_median_of_the_rounds_own() -> None:
    report = made.report()
    (verdict,) = judge(report, [SPEED])
    assert verdict.got == 2
    assert verdict.passed
    report.mixes[0].sides.update(ours=made.side([1, 4, 2]), theirs=made.side([3, 2, 8]))
    (verdict,) = judge(report, [SPEED])
    assert verdict.got == 3


def test_noise_within_the_tolerance_passes_and_more_does_not() -> None:
    slower = [replace(SPEED, measured=measured) for measured in (2.6, 2.7)]
    assert [verdict.passed for verdict in judge(made.report(), slower)] == [True, False]


@pytest.mark.parametrize(("measure", "ratio"), [("latency", 3), ("memory", 3), ("cold-start", 2.5)])
def test_above_one_is_better_whatever_the_measure(measure: str, ratio: float) -> None:
    (verdict,) = judge(made.report(), [replace(SPEED, measure=measure)])
    assert verdict.got == pytest.approx(ratio)


def test_a_ratio_that_was_not_measured_does_not_fail() -> None:
    verdicts = judge(made.report(), [SPEED, replace(SPEED, mix="long"), replace(SPEED, ours="x")])
    assert [verdict.got for verdict in verdicts[1:]] == [None, None]
    assert all(verdict.passed for verdict in verdicts)


def test_a_server_was_started_by_others_and_its_start_is_not_held() -> None:
    report = made.report()
    report.sides["theirs"] = SideStart(None, None, None, None, {})
    floors = [replace(SPEED, measure=measure) for measure in MEASURES]
    assert [verdict.got for verdict in judge(report, floors)] == [2, 3, None, None]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"ours": "our"}, "of the side 'our', and the run has ours, theirs"),
        ({"against": "their"}, "of the side 'their'"),
        ({"mix": "querys"}, "of the mix 'querys', expected one of queries, .*, real, mine"),
        ({"mix": "long"}, "no mix that a ratio is of"),
    ],
)
def test_a_ratio_that_would_hold_nothing_is_refused(changed: dict[str, str], problem: str) -> None:
    mixes = ("queries", "folder/mine.jsonl")
    held = [SPEED, replace(SPEED, mix="mine"), replace(SPEED, measure="memory", mix="")]
    check_floors([*held, replace(SPEED, mix="long")], ["ours", "theirs"], mixes)
    check_floors(held[2:], ["ours", "theirs"], mixes)
    wrong = [replace(SPEED, **changed)]
    with pytest.raises(RecipeError, match=problem):
        check_floors(wrong if "no mix" in problem else held + wrong, ["ours", "theirs"], mixes)


@pytest.mark.parametrize(
    "line",
    [
        "measured = 0",
        'mix = ""',
        "tolerance = 1.0",
        'measure = "sped"',
        "speed = 2",
        'measured = "fast"',
    ],
)
def test_a_table_that_says_something_else_is_refused(line: str, tmp_path: Path) -> None:
    good = {
        "ours": '"a"',
        "against": '"b"',
        "mix": '"queries"',
        "measured": "2.0",
        "tolerance": "0.2",
    }
    key, _, value = line.partition(" = ")
    path = tmp_path / "ratios.toml"
    path.write_text(
        "[[ratio]]\n" + "\n".join(f"{k} = {v}" for k, v in (good | {key: value}).items())
    )
    with pytest.raises(RecipeError, match=r"ratios.toml, ratio 1 is"):
        read_floors(path)


def test_the_file_of_this_repository_is_sound() -> None:
    floors = read_floors(ROOT / "benchmarks" / "ratios.toml")
    assert {floor.mix for floor in floors} >= {"queries", "passages"}
