"""Tests of nvembed_deploy/train/data/reply_log.py: every whole line survives, no half one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.reply_log import ReplyLog

SETTINGS = {"model": "m", "seed": 0}
RESULTS = {"a": ["ü\n"], "b": [], "c": {"query": "x\u2028y"}}


def write(path: Path) -> None:
    with ReplyLog(path, SETTINGS) as log:
        for request, result in RESULTS.items():
            log.add(request, result)
        assert log.results == RESULTS


def test_results_are_there_again_wherever_the_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with ReplyLog(path, SETTINGS) as log:
            whole = max(data[:length].count(b"\n") - 1, 0)
            assert list(log.results) == list(RESULTS)[:whole]
            for request in list(RESULTS)[whole:]:
                log.add(request, RESULTS[request])
        assert path.read_bytes() == data


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "log")
    for _ in range(2):  # the refusal holds nothing
        with pytest.raises(
            InputError, match=r"begun with \{'seed': 0\}, now asked for \{'seed': 1"
        ):
            ReplyLog(tmp_path / "log", {"model": "m", "seed": 1})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    write(tmp_path / "log")
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    (tmp_path / "log").write_bytes(b"\n".join([*lines[:2], b"\0" * 9, *lines[3:]]))
    with pytest.raises(InputError, match="line 3: "):
        ReplyLog(tmp_path / "log", SETTINGS)


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    with ReplyLog(tmp_path / "log", SETTINGS), pytest.raises(InputError, match="another run"):
        ReplyLog(tmp_path / "log", SETTINGS)


def test_a_result_that_comes_too_late_is_left(tmp_path: Path) -> None:
    with ReplyLog(tmp_path / "log", SETTINGS) as log:
        log.add("a", 1)
    log.add("b", 2)
    with ReplyLog(tmp_path / "log", SETTINGS) as log:
        assert log.results == {"a": 1}
