"""Tests of progress.py."""

from __future__ import annotations

import logging

import pytest

from nvembed_deploy.errors import MissingPackageError
from nvembed_deploy.runtimes import progress
from nvembed_deploy.runtimes.progress import progress_bar


def run_bar(show: bool | None) -> None:
    with progress_bar(3, show) as advance:
        advance(1)
        advance(2)


def test_a_bar_asked_for_counts_texts_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run_bar(show=True)
    captured = capsys.readouterr()
    assert "3/3" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("show", [None, False])
def test_short_work_shows_no_bar(
    show: bool | None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="nvembed_deploy"):
        run_bar(show)
    assert capsys.readouterr().err == ""


def test_long_work_shows_a_bar_when_logging_at_info(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    run_bar(show=None)
    assert capsys.readouterr().err == ""
    with caplog.at_level(logging.INFO, logger="nvembed_deploy"):
        run_bar(show=None)
    assert "3/3" in capsys.readouterr().err


def test_a_bar_asked_for_without_rich_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match="needs rich"):
        run_bar(show=True)
    run_bar(show=None)
