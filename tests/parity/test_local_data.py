"""Tests of nvembed_deploy/parity/local_data.py: rows of a suite as mteb's tasks hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.parity.local_data import dataset_of
from nvembed_deploy.parity.suite import LocalTask, read_suite
from nvembed_deploy.parity.suite_rows import Tables
from tests.parity.small import write_suite


def task(kind: str, tables: Tables) -> LocalTask:
    return LocalTask("t", kind, "", tables, "")


def test_a_rankings_truth_is_by_query_and_document(tmp_path: Path) -> None:
    (read,) = read_suite(write_suite(tmp_path, ("reranking",)))
    found = dataset_of(read, "test")["default"]["test"]
    assert found["relevant_docs"]["q0"] == {"d0": 1, "d3": 2}
    assert found["top_ranked"]["q1"][0] == "d1"


def test_the_labels_that_are_judged_are_the_first() -> None:
    rows = [
        {"text": "a", "label": label, "split": split}
        for label, split in (("a", "train"), ("b", "train"), ("c", "train"), ("c", "test"))
    ]
    rows += [{"text": "a", "label": "a", "split": "test"}]
    found = dataset_of(task("classification", {"labeled": rows}), "test")
    assert found["test"]["label"] == [1, 0]  # c and a; mteb takes 1 for the positive one
    assert found["train"]["label"] == [0, 2, 1]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("sts", {"sentence1", "sentence2", "score"}),
        ("pair_classification", {"sentence1", "sentence2", "labels"}),
        ("clustering", {"sentences", "labels"}),
        ("summarization", {"text", "human_summaries", "machine_summaries", "relevance"}),
    ],
)
def test_columns_of_a_users_own_are_left_out(tmp_path: Path, kind: str, columns: set[str]) -> None:
    (read,) = read_suite(write_suite(tmp_path, (kind,)))
    (rows,) = read.tables.values()
    for number, row in enumerate(rows):
        row["note"] = "of another kind" if number % 2 else 3
    assert set(dataset_of(read, "test")["test"].column_names) == columns
