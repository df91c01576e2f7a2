"""Tests of nvembed_deploy/commands/build_data.py: a plan in, a file and its table out."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.train.data.plan import load_plan
from nvembed_deploy.train.example import fault_of
from tests import factories
from tests.train.data import raw

PLAN = """
[[evaluation]]
path = "{folder}/suite.jsonl"

[[source]]
name = "topics"
path = "{folder}/topics.jsonl"
kind = "clustering"
instruction = "find the topic"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    raw.write(tmp_path / "topics.jsonl", raw.labelled_rows())
    raw.write(tmp_path / "suite.jsonl", [{"text": raw.MONEY[0]}])
    (tmp_path / "plan.toml").write_text(PLAN.format(folder=tmp_path))
    return tmp_path / "plan.toml"


def test_a_plan_becomes_a_file_and_says_what_is_in_it(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "train.jsonl"
    factories.write_tokenizer(tmp_path / "tokenizer.json")
    words = ["build-data", str(plan), "--out", str(out), "--tokenizer", str(tmp_path)]
    assert main(words) == 0
    rows = raw.read(out)
    assert [fault_of(row) for row in rows] == [None] * 7
    said = capsys.readouterr().out
    assert said.startswith("topics: 7 examples\n  left out 1 text nearly in an evaluation:\n")
    assert f"{raw.MONEY[0]!r} ~ {raw.MONEY[0]!r}" in said
    assert f"wrote {out}: 7 examples" in said
    assert "tokens" in said
    first = out.read_bytes()
    assert main(words) == 0
    assert out.read_bytes() == first


def test_a_bad_row_stops_and_leaves_no_file_or_is_counted(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.write(tmp_path / "topics.jsonl", [*raw.labelled_rows(), {"text": "", "label": "x"}, "{"])
    out = tmp_path / "train.jsonl"
    assert main(["build-data", str(plan), "--out", str(out)]) == 2
    assert "topics.jsonl, line 9: text is empty\nfix: correct it" in capsys.readouterr().err
    assert not out.exists()
    assert main(["build-data", str(plan), "--out", str(out), "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert f"1 x text is empty (first: {tmp_path}/topics.jsonl, line 9)" in said
    assert f"1 x broken JSON (first: {tmp_path}/topics.jsonl, line 10)" in said


def test_a_file_that_is_there_can_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": "a b", "positive": "c", "source": "s"}, "{"]
    path = raw.write(tmp_path / "pairs.jsonl", rows)
    assert main(["build-data", "--lengths", str(path), "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert "s       query         1  words" in said
    assert "left out       1 x broken JSON" in said


def test_the_help_shows_a_plan_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["build-data", "--help"])
    _, shown = capsys.readouterr().out.split("raw set:\n")
    (tmp_path / "plan.toml").write_text(shown)
    assert load_plan(tmp_path / "plan.toml").source[0].name == "questions"


def test_one_example_is_not_called_several(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(plan.read_text() + "limit = 1\n")
    out = tmp_path / "train.jsonl"
    assert main(["build-data", str(plan), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("topics: 1 example, 6 over the limit\n")
    assert f"wrote {out}: 1 example\n" in said


def test_what_is_not_utf8_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes('{"query": "é", "positive": "c"}\n'.encode("latin-1"))
    assert main(["build-data", "--lengths", str(path)]) == 2
    assert f"error: {path}, line 1: not UTF-8\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give a plan and --out, or --lengths alone"),
        (["PLAN"], "give a plan and --out, or --lengths alone"),
        (["PLAN", "--lengths", "x"], "give a plan and --out, or --lengths alone"),
        (["gone.toml", "--out", "o.jsonl"], "plan gone.toml does not exist"),
        (["PLAN", "--out", "gone/o.jsonl"], "lies in a folder that does not exist"),
        (["PLAN", "--out", "o.jsonl", "--tokenizer", "gone"], "tokenizer gone cannot be read"),
    ],
)
def test_wrong_input_is_two_lines(
    plan: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert main(["build-data", *(str(plan) if w == "PLAN" else w for w in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert problem in error


def test_what_lies_beside_raw_data_is_not_read(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "raw", tmp_path / "raw" / "train.jsonl"
    folder.mkdir()
    raw.write(folder / "topics.jsonl", raw.labelled_rows())
    raw.write(folder / "topics.jsonl.bak", ["{"])
    (folder / ".made.jsonl.replies").mkdir()
    raw.write(folder / ".made.jsonl.replies" / "replies.jsonl", [{"model": "m"}])
    plan.write_text(plan.read_text().replace("/topics.jsonl", "/raw"))
    words = ["build-data", str(plan), "--out", str(out)]
    assert main(words) == 0
    first = out.read_bytes()
    assert main(words) == 0
    assert out.read_bytes() == first
    assert capsys.readouterr().out.count("topics: 7 examples\n") == 2
