"""Tests of nvembed_deploy/train/journal.py: the record of a run, and what is shown of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nvembed_deploy.train.journal import (
    Journal,
    LiveView,
    PlainView,
    StepRecord,
    draw_curves,
    open_view,
    read_log,
)
from tests.full_disk import files_up_to


def record(step: int, loss: float = 1.0) -> StepRecord:
    return StepRecord(step, loss, 2.0, 1e-4, tokens=100, truncated=0, seconds=0.5)


def test_a_log_is_read_back_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.add(record(step, 1 / step))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text()[:-20])
    assert read_log(tmp_path) == [record(1), record(2, 0.5)]


def test_steps_that_are_done_again_are_logged_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.add(record(step))
    Journal(tmp_path, 2).add(record(3, 7.0))
    assert [(r.step, r.loss) for r in read_log(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]


def test_a_full_disk_does_not_cost_the_log(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.add(record(step))
    with files_up_to(100), pytest.raises(OSError):
        Journal(tmp_path, 2)
    assert len(read_log(tmp_path)) == 3


def test_a_pipe_gets_a_line_every_few_steps_and_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView(7, 3)
    for step in range(1, 8):
        view.show(record(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 3/7", "step 6/7", "step 7/7"]
    assert lines[0].endswith("loss 1.0000  grad 2.000  lr 1.00e-04  200 tokens/s")


def test_a_terminal_gets_one_line_that_smooths_the_loss() -> None:
    with LiveView(4, 0) as view:
        view.show(record(1, 2.0))
        view.show(record(2, 1.0))
        (task,) = view._bars.tasks
    assert (task.completed, task.total) == (2, 4)
    assert task.fields["numbers"] == "loss 1.9500  grad 2.00  200 tok/s"


def test_a_step_that_was_left_out_does_not_spoil_the_line() -> None:
    with LiveView(4, 0) as view:
        for step, loss in enumerate((math.nan, 2.0, math.inf, 1.0), 1):
            view.show(record(step, loss))
        (task,) = view._bars.tasks
    assert task.fields["numbers"].startswith("loss 1.9500")


def test_the_view_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, kind in ((True, LiveView), (False, PlainView)):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=is_terminal: answer)
        with open_view(3, 0, 1) as view:
            assert isinstance(view, kind)


def test_curves_are_a_picture_and_a_bad_loss_does_not_spoil_them(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) is None
    journal = Journal(tmp_path, 0)
    for step in range(1, 9):
        journal.add(record(step, math.nan if step == 4 else 1 / step))
    path = draw_curves(tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
