"""Tests of nvembed_deploy/parity/suite_rows.py: a line that cannot be used is refused by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.suite_rows import KINDS, read_tables
from tests.parity.small import write_suite

HALF = "\ud800"


def read_with(folder: Path, kind: str, file: str, line: str) -> None:
    """Read a small task after a line was added to one of its files."""
    task = write_suite(folder, (kind,)) / f"small_{kind}"
    path = task / file
    path.write_text(path.read_text().rstrip("\n") + "\n" + line + "\n")
    read_tables(task, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_read_with_all_its_files(tmp_path: Path, kind: str) -> None:
    task = write_suite(tmp_path, (kind,)) / f"small_{kind}"
    tables, files = read_tables(task, kind)
    assert sorted([*files, task / "task.json"]) == sorted(task.iterdir())
    assert all(tables[file.stem] for file in files)


def row(**values: object) -> str:
    return json.dumps(values)


STS = {"sentence1": "a", "sentence2": "b"}
SUMMARY = {
    "text": "a",
    "human_summaries": ["a"],
    "machine_summaries": ["b", "c"],
    "relevance": [1, 2],
}


@pytest.mark.parametrize(
    ("file", "line", "problem", "fix"),
    [
        ("sts/pairs", row(**STS, score=float("nan")), "score is nan", "a finite number"),
        ("sts/pairs", row(**STS, score=float("inf")), "score is inf", "a finite number"),
        ("sts/pairs", row(**STS, score=10**400), "score is 1000", "a finite number"),
        ("sts/pairs", row(**STS, score=True), "score is True", "a finite number"),
        ("sts/pairs", row(sentence1=HALF, sentence2="b", score=1), "sentence1 is", "half of a"),
        ("sts/pairs", "[" * 9**5, "broken JSON", "correct the line"),
        ("pair_classification/pairs", row(**STS, label=1.0), "label is 1.0", "0 or 1"),
        ("pair_classification/pairs", row(**STS, label=True), "label is True", "0 or 1"),
        ("clustering/data", row(text=HALF, label="a"), "text is '\\ud800'", "half of a"),
        ("clustering/data", row(text="a", label=HALF), "label is '\\ud800'", "half of a"),
        ("retrieval/corpus", row(_id="a\0", text="a"), "_id is 'a\\x00'", "without NUL"),
        ("retrieval/corpus", row(_id="a", text="a", title=3), "title is 3", "a text"),
        (
            "reranking/top_ranked",
            row(**{"query-id": "q1", "corpus-ids": [1, 2]}),
            "corpus-ids is [1, 2]",
            "a list of texts, not empty",
        ),
        (
            "reranking/top_ranked",
            row(**{"query-id": "q1", "corpus-ids": []}),
            "corpus-ids is []",
            "a list of texts, not empty",
        ),
        (
            "reranking/top_ranked",
            row(**{"query-id": "q1", "corpus-ids": ["d1", "nowhere"]}),
            "corpus-ids has 'nowhere'",
            "each to be the _id of a row",
        ),
        (
            "summarization/summaries",
            row(**SUMMARY | {"relevance": [1]}),
            "got 2 machine_summaries, 1 relevance",
            "as many of one as of the other",
        ),
        (
            "summarization/summaries",
            row(**SUMMARY | {"machine_summaries": [], "relevance": []}),
            "machine_summaries is []",
            "a list of texts, not empty",
        ),
        (
            "summarization/summaries",
            row(**SUMMARY | {"human_summaries": [HALF]}),
            "human_summaries is ['\\ud800']",
            "a list of texts, not empty",
        ),
        (
            "summarization/summaries",
            row(**SUMMARY | {"relevance": ["good", "bad"]}),
            "relevance is ['good', 'bad']",
            "a list of finite numbers, not empty",
        ),
        (
            "summarization/summaries",
            row(**SUMMARY | {"relevance": [1, float("nan")]}),
            "relevance is [1, nan]",
            "a list of finite numbers, not empty",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    tmp_path: Path, file: str, line: str, problem: str, fix: str
) -> None:
    kind, _, stem = file.partition("/")
    with pytest.raises(InputError) as caught:
        read_with(tmp_path, kind, f"{stem}.jsonl", line)
    where, _, found = caught.value.problem.partition(", line ")
    assert where.endswith(f"{stem}.jsonl")
    assert found.partition(": ")[2].startswith(problem)
    assert fix in caught.value.fix


@pytest.mark.parametrize("score", ["1000001", str(10**25), "9" * 5000, "-1", "0.5", "²", ""])
def test_a_relevance_that_trec_eval_cannot_count_is_refused(tmp_path: Path, score: str) -> None:
    with pytest.raises(InputError, match="whole number of at most 1000000") as caught:
        read_with(tmp_path, "retrieval", "qrels.tsv", f"q1\td1\t{score}")
    assert "qrels.tsv, line 42" in caught.value.problem


def test_a_pair_has_one_relevance(tmp_path: Path) -> None:
    read_with(tmp_path / "1", "retrieval", "qrels.tsv", "q1\td1\t2\nq1\td1\t2")
    with pytest.raises(InputError, match=r"line 43: 'q1' and 'd1' have the score 0 .* 2 above"):
        read_with(tmp_path / "2", "retrieval", "qrels.tsv", "q1\td1\t2\nq1\td1\t0")


def test_blanks_at_the_end_of_a_relevance_do_no_harm(tmp_path: Path) -> None:
    read_with(tmp_path, "retrieval", "qrels.tsv", "q1\td2\t0 ")


def test_rankings_of_other_queries_do_no_harm(tmp_path: Path) -> None:
    other = row(**{"query-id": "of another split", "corpus-ids": ["d1"]})
    read_with(tmp_path, "reranking", "top_ranked.jsonl", other)


def test_a_title_may_be_left_out_or_null(tmp_path: Path) -> None:
    read_with(tmp_path / "1", "retrieval", "corpus.jsonl", row(_id="a", text="a", title=None))
    read_with(tmp_path / "2", "retrieval", "corpus.jsonl", row(_id="a", text="a", title="A"))
