"""Tests of nvembed_deploy/train/data/mining.py: near negatives, no known positive among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.train.data.embeddings import EmbeddingStore
from nvembed_deploy.train.data.mining import Miner
from nvembed_deploy.train.data.negatives import Choice, Rule
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.example import fault_of
from tests.train.data.teacher import LetterTeacher, unit

TOP = Choice(Rule.TOP_K, 0.0, count=2, depth=10)


def row(query: str, positive: str, *negatives: str, **others: str) -> Row:
    return {"query": query, "positive": positive, "negatives": list(negatives), **others}


def mine(folder: Path, rows: list[Row], choice: Choice = TOP, corpus: tuple[str, ...] = ()):
    miner, teacher = Miner(rows, choice, corpus), LetterTeacher()
    mined = list(miner.mine(EmbeddingStore(folder, teacher, "t")))
    assert miner.num_texts == len(teacher.texts)
    return mined, miner.report


def test_the_nearest_of_the_group_are_the_negatives(tmp_path: Path) -> None:
    rows = [row("aab", "aabb", "abc"), row("cd", "bcd"), row("ef", "eff")]
    mined, report = mine(tmp_path, rows)
    assert mined[0]["negatives"] == ["abc", "bcd"]
    assert mined[0]["positive_score"] == round(float(unit("aab") @ unit("aabb")), 4)
    assert mined[0]["negative_scores"][0] == round(float(unit("aab") @ unit("abc")), 4)
    assert [r["query"] for r in mined] == ["aab", "cd", "ef"]
    assert all(fault_of(r) is None for r in mined)
    assert (report.rows, report.passages, report.negatives) == (3, 4, 6)


def test_a_likely_positive_is_rejected_and_counted(tmp_path: Path) -> None:
    rows = [row("aab", "aabb", "aaab", "abc", "cd")]
    mined, report = mine(tmp_path, rows, Choice(count=2, depth=10))
    assert mined[0]["negatives"] == ["abc", "cd"]
    assert (report.rejected, report.rows_with_rejected, report.rows_short) == (1, 1, 0)
    assert report.rows_positive_first == 0
    assert "rejected as false negatives: 1 candidate in 1 row (100.0%)" in report.lines()
    mined, report = mine(tmp_path / "more", rows, Choice(count=3, depth=10))
    assert (len(mined[0]["negatives"]), report.rows_short) == (2, 1)


def test_no_positive_of_the_same_query_is_its_negative(tmp_path: Path) -> None:
    mined, report = mine(tmp_path, [row("ab", "aab"), row("ab", "abb"), row("ab", "cd")])
    assert [r["negatives"] for r in mined] == [[], [], []]
    assert report.known_relevant == 9


def test_the_query_itself_and_texts_of_its_label_are_no_negatives(tmp_path: Path) -> None:
    rows = [
        row("ab", "aab", label="x"),
        row("aab", "abb", label="x"),
        row("abc", "ab", label="y"),  # a text of two labels: the last one counts
        row("cd", "ccd", label="y"),
    ]
    mined, _ = mine(tmp_path, rows)
    assert "aab" not in mined[1]["negatives"]
    assert set(mined[0]["negatives"]) <= {"ab", "abc", "ccd"} - {"ab"}
    assert not {"ccd", "ab"} & set(mined[3]["negatives"])


def test_a_text_of_another_label_is_a_negative_however_near(tmp_path: Path) -> None:
    rows = [
        row("aab", "bbbb", "aabb", label="x"),  # its own positive is further than both others
        row("ab", "cd", label="y"),
    ]
    mined, report = mine(tmp_path, rows, Choice(count=2, depth=10))
    assert [r["negatives"] for r in mined] == [["cd"], ["bbbb"]]
    assert report.rejected == 2  # "aabb", which has no label, in both rows
    rows[1] = row("ab", "aabb", label="y")
    mined, _ = mine(tmp_path / "more", rows, Choice(count=2, depth=10))
    assert mined[0]["negatives"] == ["aabb"]


def test_groups_do_not_mix(tmp_path: Path) -> None:
    rows = [
        row("ab", "aab", source="one"),
        row("ac", "aac", source="one"),
        row("ab", "abb", source="two"),
        row("ad", "aad", source="two", task_type="sts", instruction="h"),
    ]
    mined, report = mine(tmp_path, rows)
    assert [r["negatives"] for r in mined] == [["aac"], ["aab"], [], []]
    assert report.rows_short == 4


def test_a_corpus_adds_passages(tmp_path: Path) -> None:
    mined, _ = mine(tmp_path, [row("ab", "aab")], corpus=("abb", "cd", "aab"))
    assert mined[0]["negatives"] == ["abb", "cd"]


@pytest.mark.parametrize(("task_type", "both"), [("retrieval", False), ("sts", True)])
def test_passages_carry_the_instruction_where_both_sides_are_alike(
    tmp_path: Path, task_type: str, both: bool
) -> None:
    rows = [row("ab", "ad", "cd", task_type=task_type, instruction="h")]
    mined, _ = mine(tmp_path, rows)
    passage = unit("ad", "h" if both else "")
    assert mined[0]["positive_score"] == round(float(unit("ab", "h") @ passage), 4)


def test_what_other_tools_kept_of_old_negatives_goes(tmp_path: Path) -> None:
    mined, _ = mine(tmp_path, [row("ab", "aab", "cd", label="x") | {"negative_labels": ["y"]}])
    assert "negative_labels" not in mined[0]
    assert mined[0]["label"] == "x"
