"""Tests of nvembed_deploy/export/progress.py: what a long export says in a log."""

from __future__ import annotations

import pytest

from nvembed_deploy.export import progress
from nvembed_deploy.export.progress import LogProgress, SilentProgress, progress_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_long_step_writes_a_line_each_half_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with LogProgress().step("weights", 100) as advance:
        for _ in range(10):
            clock[0] += 12
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "weights: 30% in 36 s, about 84 s left",
        "weights: 60% in 72 s, about 48 s left",
        "weights: 90% in 108 s, about 12 s left",
    ]


def test_a_short_step_and_one_without_a_total_write_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with LogProgress().step("graph", None) as advance:
        clock[0] += 100
        advance(1)
    with LogProgress().step("weights", 100) as advance:
        advance(100)
    assert capsys.readouterr().err == ""


def test_a_log_gets_lines_and_json_nothing() -> None:
    assert isinstance(progress_for(is_quiet=False), LogProgress)
    assert isinstance(progress_for(is_quiet=True), SilentProgress)
