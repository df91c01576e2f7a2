"""Tests of nvembed_deploy/parity/suite_rules.py: a task that would measure nothing is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.suite_rows import KINDS, Tables, read_tables
from nvembed_deploy.parity.suite_rules import check_tables
from tests.parity.small import write_suite

Change = Callable[[Tables], None]


def tables_of(folder: Path, kind: str) -> Tables:
    return read_tables(write_suite(folder, (kind,)) / f"small_{kind}", kind)[0]


def all_same(stem: str, column: str, value: object) -> Change:
    def change(tables: Tables) -> None:
        for row in tables[stem]:
            row[column] = value

    return change


def new_label(tables: Tables) -> None:
    next(row for row in tables["labeled"] if row["split"] == "test")["label"] = "c"


def one_learned(tables: Tables) -> None:
    for row in tables["labeled"]:
        if row["split"] == "train":
            row["label"] = "a"


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_whose_truth_differs_is_taken(tmp_path: Path, kind: str) -> None:
    tables = tables_of(tmp_path, kind)
    for row in tables.get("qrels", [])[:1]:
        row["score"] = 0
    check_tables("here", kind, tables)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("retrieval", all_same("qrels", "score", 0), "every score of qrels.tsv is 0"),
        ("reranking", all_same("qrels", "score", 0), "every score of qrels.tsv is 0"),
        ("reranking", lambda tables: tables["top_ranked"].pop(3), "query 'q3' of qrels.tsv has no"),
        ("sts", all_same("pairs", "score", 1), "every score is 1"),
        ("pair_classification", all_same("pairs", "label", 1), "every label is 1"),
        ("classification", all_same("labeled", "split", "test"), "no row is of split train"),
        ("classification", all_same("labeled", "label", "a"), "split train: every label is 'a'"),
        ("classification", one_learned, "split train: every label is 'a'"),
        ("classification", new_label, "label 'c' is in split test and not in train"),
        ("clustering", all_same("data", "label", "a"), "every label is 'a'"),
        (
            "summarization",
            all_same("summaries", "relevance", [2.0, 2.0, 2.0, 2.0]),
            "in no row does the relevance differ",
        ),
    ],
)
def test_a_task_that_measures_nothing_is_refused(
    tmp_path: Path, kind: str, change: Change, problem: str
) -> None:
    tables = tables_of(tmp_path, kind)
    change(tables)
    with pytest.raises(InputError, match=r"^here: ") as caught:
        check_tables("here", kind, tables)
    assert problem in caught.value.problem
    assert caught.value.fix
