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


def row(query: str, positive: str, *negatives: str, **others: object) -> Row:
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
        row("abc", "ab", label="y"),  # a text of two labels: both count
        row("cd", "ccd", label="y"),
    ]
    mined, report = mine(tmp_path, rows)
    assert [set(r["negatives"]) for r in mined] == [set(), {"ccd"}, {"aab", "abb"}, {"aab", "abb"}]
    assert (report.rows_short, report.rows_without) == (2, 1)
    assert "fewer negatives than asked for: 2 rows, none at all: 1 row" in report.lines()


def test_labels_hold_within_their_group(tmp_path: Path) -> None:
    one, other = ["ab", "aab", "abb", "aabb"], ["cd", "ccd", "cdd", "ccdd"]
    classes = {
        "intents": {"x": one, "y": other},
        "scenarios": {"s": one[:2] + other[:2], "t": one[2:] + other[2:]},
    }
    rows = [
        row(text, texts[i - 1], label=label, source=source, instruction=source)
        for source, labels in classes.items()
        for label, texts in labels.items()
        for i, text in enumerate(texts)
    ]
    mined, _ = mine(tmp_path, rows)
    for r in mined:
        assert len(r["negatives"]) == 2
        assert not set(classes[r["source"]][r["label"]]) & set(r["negatives"])


def test_the_labels_of_given_negatives_count(tmp_path: Path) -> None:
    rows = [
        row("ab", "abc", "aabb", "cd", label="x", negative_labels=["x", "y"]),
        row("ef", "eff", "abb", label="z", negative_labels=["x"]),
    ]
    mined, report = mine(tmp_path, rows)
    assert mined[0]["negatives"] == ["cd", "eff"]  # not the nearer "aabb" and "abb"
    assert mined[0]["negative_labels"] == ["y", "z"]
    assert report.known_relevant == 4
    del rows[0]["negative_labels"], rows[1]["negative_labels"]
    mined, _ = mine(tmp_path / "more", rows)
    assert mined[0]["negatives"] == ["aabb", "abb"]
    assert "negative_labels" not in mined[0]


def test_a_class_larger_than_the_depth_leaves_negatives(tmp_path: Path) -> None:
    one = ["a" * i + "b" * j for i in range(1, 6) for j in range(1, 6)]
    two = [text.replace("a", "c") for text in one[:4]]
    rows = [
        row(text, texts[i - 1], label=label)
        for label, texts in (("x", one), ("y", two))
        for i, text in enumerate(texts)
    ]
    mined, report = mine(tmp_path, rows, Choice(count=2, depth=3))
    assert (report.negatives, report.rows_short, report.rows_without) == (2 * len(rows), 0, 0)
    assert {text for r in mined[: len(one)] for text in r["negatives"]} <= set(two)


def test_own_negatives_stay_where_the_rule_lets_pass_too_few(tmp_path: Path) -> None:
    near = tuple("gh" * i + "g" for i in range(2, 9))  # all too near to the query
    rows = [row("gh", "ghh", "bcd", "ghgh", "gbc", "efh", "e"), row("gh", "gggh")]
    mined, report = mine(tmp_path, rows, Choice(count=3, depth=5), near)
    assert mined[0]["negatives"] == ["gbc", "efh", "bcd"]
    assert mined[0]["negative_scores"] == sorted(mined[0]["negative_scores"], reverse=True)
    assert mined[1]["negatives"] == []  # it had none
    assert report.rows_without == 1
    mined, _ = mine(tmp_path / "more", rows, Choice(count=3, depth=5), (*near[:3], "gha"))
    assert mined[0]["negatives"] == ["gha", "gbc", "efh"]


def test_a_query_of_more_positives_than_the_depth_has_negatives(tmp_path: Path) -> None:
    rows = [row("gh", "gh" * i + "g") for i in range(1, 9)]
    mined, _ = mine(tmp_path, rows, Choice(count=2, depth=3), corpus=("abc", "efg", "fgh"))
    assert [set(r["negatives"]) for r in mined] == [{"efg", "fgh"}] * len(rows)


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


def test_a_text_that_is_query_and_passage_alike_is_embedded_once(tmp_path: Path) -> None:
    texts = ["ab", "aab", "abb", "cd", "ccd", "ef"]
    rows = [row(texts[i], texts[i - 2], "gh" * (i + 1)) for i in range(1, 5)]
    found = []
    for task_type, embedded in (("retrieval", 4 + 8), ("sts", 4 + 8 - 2)):
        labelled = [{**r, "task_type": task_type, "instruction": "x"} for r in rows]
        miner, teacher = Miner(labelled, TOP), LetterTeacher()
        found.append(list(miner.mine(EmbeddingStore(tmp_path, teacher, "t"))))
        assert len(teacher.texts) == miner.num_texts == embedded
    for one, other in zip(*found, strict=True):  # the teacher does not know the letter x
        assert {**one, "task_type": "sts"} == other


def test_mined_rows_can_be_mined_again(tmp_path: Path) -> None:
    rows = [
        row("ab", "aab", "cd", "bcd", label="x", negative_labels=["y", None]),
        row("abd", "abb", "aac", label="x", negative_labels=["z"]),
    ]
    mined, _ = mine(tmp_path, rows, Choice(Rule.TOP_K, 0.0, count=3, depth=10))
    assert mined[0]["negatives"] == ["aac", "bcd", "cd"]
    assert mined[0]["negative_labels"] == ["z", None, "y"]
    assert mine(tmp_path / "2", mined, Choice(Rule.TOP_K, 0.0, count=3, depth=10))[0] == mined
