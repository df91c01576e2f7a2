"""Tests of nvembed_deploy/parity/screen.py: what is shown is what was found, whatever its name."""

from __future__ import annotations

import pytest

from nvembed_deploy.parity.bootstrap import Interval
from nvembed_deploy.parity.check import Tasks
from nvembed_deploy.parity.embedding import EmbeddingParity
from nvembed_deploy.parity.margins import MARGINS
from nvembed_deploy.parity.screen import describe, progress, show
from nvembed_deploy.parity.suite import BUILT_IN, read_suite
from nvembed_deploy.parity.verdict import TaskParity, Verdict

NUMBERS = dict.fromkeys(EmbeddingParity.__dataclass_fields__, 1.0) | {"histogram": [], "worst": []}


def found(name: str, interval: Interval | None) -> TaskParity:
    return TaskParity(
        name=name,
        kind="STS",
        metric="cosine_spearman",
        instruction="",
        reference=0.5,
        candidate=0.4,
        interval=interval,
        count=30,
        is_too_small=False,
        passed=False,
        reason="",
    )


@pytest.mark.parametrize("name", ["[/]", "[red]x", "plain", "[b]", "long" * 30])
def test_a_name_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [found(name, Interval(-0.2, -0.1, 30, "pairs")), found("other", None)]
    show(Verdict(False, [], [], tasks, EmbeddingParity(**NUMBERS), MARGINS["fp32"], "fp32"))
    first, second = (line for line in capsys.readouterr().out.splitlines() if "0.4000" in line)
    assert name[:20] in first
    assert "-0.2000 .. -0.1000" in first
    assert "no interval" in second


def test_what_is_of_mteb_is_said_to_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    describe(Tasks(named=("STS12",)), "artifact")
    out = capsys.readouterr().out
    assert "instruction: Retrieve semantically similar text" in out
    assert "and those of mteb's tasks, whose data are fetched, on artifact" in out


def test_the_total_is_unknown_where_mtebs_tasks_are_among_them() -> None:
    local = read_suite(BUILT_IN)
    assert Tasks(local).known == Tasks(local, ("STS12",)).texts > 0
    assert Tasks(local, ("STS12",)).known == 0


def test_progress_takes_any_count_where_the_total_is_not_known() -> None:
    with progress(0) as advance:
        advance(3)
