"""Tests of nvembed_deploy/train/data/rows.py: nothing bad passes unnamed, nothing half appears."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.rows import (
    Faults,
    Row,
    data_files,
    labelled_negatives,
    read_pairs,
    read_rows,
    with_negatives,
    write_rows,
)
from nvembed_deploy.train.example import fault_of
from tests.train.data import raw

ROWS: list[Row] = [{"a": "ü 🦀"}, {"a": "line\nbreak"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_rows(path, ROWS) == 2
    assert [row for _, row in read_rows(path, Faults(stop=True))] == ROWS
    first = path.read_bytes()
    write_rows(path, ROWS)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield {"a": 2}
        raise InputError("no", "yes")

    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    with pytest.raises(InputError):
        write_rows(path, broken())
    assert [row for _, row in read_rows(path, Faults(stop=True))] == ROWS
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_lines_are_counted_by_reason_with_their_first_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n\n[]\n{\n\xff\n{"a": 2}')
    faults = Faults(stop=False)
    assert [row["a"] for _, row in read_rows(path, faults)] == [1, 2]
    assert faults.counts == {"broken JSON": 2, "got a list, expected an object": 1, "not UTF-8": 1}
    assert faults.lines()[0].endswith(f"2 x broken JSON (first: {path}, line 2)")
    with pytest.raises(InputError, match="line 2: broken JSON"):
        list(read_rows(path, Faults(stop=True)))


def test_many_reasons_are_a_few_lines() -> None:
    faults = Faults(stop=False)
    for number in range(1000):
        faults.add(f"line {number}", f"score is {max(number, 990)!r}")
    lines = faults.lines()
    assert lines[0] == "    991 x score is 990 (first: line 0)"
    assert len(lines) == 10
    faults.add("line 1000", "another")
    faults.add("line 1001", "and another")
    assert faults.lines()[10:] == ["      2 x for 2 other reasons"]


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".rows.jsonl.partial").write_text("half a li")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert len(raw.read(tmp_path / "rows.jsonl")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not a file"),
        (gzip.compress(b'{"a": 1}\n')[:-9], "after line"),
        (b"no gzip\n", "after line 0"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "rows.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        list(read_rows(path, Faults(stop=False)))
    assert str(path) in caught.value.problem


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"positive": " "}, "positive is empty"),
        ({"negatives": ["b"]}, "the positive is among the negatives"),
        ({"positive": "a"}, "the positive is the query itself"),
        ({"negatives": ["\ud800"]}, "a text is no valid Unicode"),
    ],
)
def test_an_example_that_training_would_refuse_is_refused_here(
    tmp_path: Path, changes: Row, fault: str | None
) -> None:
    row = {"query": "a", "positive": "b", "negatives": [], **changes}
    assert fault_of(row) == fault
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    faults = Faults(stop=False)
    assert len(list(read_pairs(path, faults))) == (fault is None)
    assert list(faults.counts) == ([fault] if fault else [])


def test_a_folders_data_are_its_jsonl_files_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.jsonl", "deep/a.jsonl.gz", "a.jsonl.bak", ".a.jsonl.partial", "out.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".made.jsonl.replies").mkdir()
    (tmp_path / ".made.jsonl.replies" / "replies.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    expected = [tmp_path / "b.jsonl", tmp_path / "deep" / "a.jsonl.gz"]
    assert data_files(tmp_path, without=tmp_path / "deep" / ".." / "out.jsonl") == expected
    assert data_files(tmp_path) == [*expected, tmp_path / "out.jsonl"]
    assert data_files(tmp_path / "a.jsonl.bak") == [tmp_path / "a.jsonl.bak"]
    with pytest.raises(InputError, match=r"folder\.jsonl has no \.jsonl or"):
        data_files(tmp_path / "folder.jsonl")


def test_negatives_and_their_labels_go_together() -> None:
    row = {"query": "q", "negatives": ["a", " ", "b"], "negative_labels": [1, 2, None]}
    pairs = labelled_negatives(row)
    assert pairs == [("a", "1"), ("b", None)]
    assert with_negatives(row, pairs[:1]) == {
        "query": "q",
        "negatives": ["a"],
        "negative_labels": ["1"],
    }
    assert with_negatives(row, pairs[1:]) == {"query": "q", "negatives": ["b"]}
    assert labelled_negatives({"negatives": None}) == []


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("ab", "negative_labels is 'ab', expected a list"),
        ([1], "got 1 negative_labels, expected 2"),
    ],
)
def test_labels_that_are_not_the_negatives_are_a_fault(
    tmp_path: Path, labels: object, reason: str
) -> None:
    row = {"query": "q", "positive": "p", "negatives": ["a", "b"], "negative_labels": labels}
    with pytest.raises(InputError, match=reason):
        list(read_pairs(raw.write(tmp_path / "a.jsonl", [row]), Faults(stop=True)))
    row["negative_labels"] = None
    assert len(list(read_pairs(raw.write(tmp_path / "a.jsonl", [row]), Faults(stop=True)))) == 1
