"""Tests of nvembed_deploy/train/data/labelled.py: positives share the class, negatives never do."""

from __future__ import annotations

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.labelled import (
    Labelled,
    by_example,
    by_label_text,
    read_labelled,
)
from nvembed_deploy.train.data.rows import Faults
from tests.train.data.raw import ANIMALS, labelled_rows, placed, source

LABELS = {row["text"]: row["label"] for row in labelled_rows()}
TEXTS = [Labelled(f"line {i}", text, label) for i, (text, label) in enumerate(LABELS.items())]


@pytest.mark.parametrize("negatives", [0, 1, 2, 7])
def test_an_example_of_the_class_is_the_positive_and_others_are_negatives(negatives: int) -> None:
    plan = source("classification", negatives=negatives)
    rows = [row for _, row in by_example(TEXTS, plan, 3, Faults(stop=True))]
    assert [row["query"] for row in rows] == [item.text for item in TEXTS]
    for row in rows:
        assert row["positive"] != row["query"]
        assert LABELS[row["positive"]] == LABELS[row["query"]] == row["label"]
        others = [LABELS[text] for text in row["negatives"]]
        assert row["negative_labels"] == others
        assert row["label"] not in others
        assert len(set(row["negatives"])) == len(row["negatives"]) <= negatives
        assert len(set(others)) == min(negatives, 2)


def test_the_seed_decides_and_another_source_draws_otherwise() -> None:
    def drawn(seed: int, name: str = "raw") -> list[object]:
        plan = source("clustering", name=name)
        return [row for _, row in by_example(TEXTS, plan, seed, Faults(stop=True))]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, "other")


def test_a_class_of_one_text_has_no_positive() -> None:
    faults = Faults(stop=False)
    texts = [*TEXTS, Labelled("line 99", "alone", "single")]
    rows = list(by_example(texts, source("clustering"), 0, faults))
    assert "alone" not in {row["query"] for _, row in rows}
    assert "label 'single' has this one text, so no positive (first: line 99)" in faults.lines()[0]


def test_the_label_is_the_positive_and_the_other_label_the_negative() -> None:
    plan = source("label-texts", label_texts={"0": "not toxic", "1": "toxic"})
    rows = placed([{"text": "you fool", "label": 1}, {"text": "good day", "label": "0"}])
    texts = list(read_labelled(rows, plan, Faults(stop=True)))
    built = [row for _, row in by_label_text(texts, plan, 0)]
    assert [(r["query"], r["positive"], r["negatives"]) for r in built] == [
        ("you fool", "toxic", ["not toxic"]),
        ("good day", "not toxic", ["toxic"]),
    ]
    assert [row["negative_labels"] for row in built] == [["0"], ["1"]]


def test_without_texts_labels_are_their_own() -> None:
    built = [row for _, row in by_label_text(TEXTS, source("label-texts", negatives=1), 0)]
    assert built[0]["positive"] == "animal"
    assert {len(row["negatives"]) for row in built} == {1}
    assert {text for row in built for text in row["negatives"]} == {"animal", "money", "plant"}


FAULTS = {
    "no text": ({"label": "a"}, "text is None, expected a text"),
    "empty": ({"text": " ", "label": "a"}, "text is empty"),
    "half a pair": ({"text": "a\ud800", "label": "a"}, "text is no valid Unicode"),
    "no label": ({"text": "x"}, "label is None, expected a label"),
    "NaN for a label": ({"text": "x", "label": float("nan")}, "label is nan, expected a label"),
    "again": ({"text": ANIMALS[0], "label": "animal"}, "the text occurred before"),
}


@pytest.mark.parametrize(("row", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_bad_row_is_named_and_left_out(row: dict[str, object], reason: str) -> None:
    rows = placed([*labelled_rows(), row])
    faults = Faults(stop=False)
    assert len(list(read_labelled(rows, source("classification"), faults))) == 8
    assert faults.counts == {reason: 1}
    with pytest.raises(InputError, match=f"line 9: {reason}"):
        list(read_labelled(rows, source("classification"), Faults(stop=True)))


def test_a_text_under_two_labels_is_left_out_wherever_it_occurs() -> None:
    again = [{"text": ANIMALS[0], "label": label} for label in ("money", "animal", "money")]
    rows, faults = placed([*labelled_rows(), *again]), Faults(stop=False)
    texts = list(read_labelled(rows, source("classification"), faults))
    assert [item.text for item in texts] == [text for text in LABELS if text != ANIMALS[0]]
    assert faults.counts == {
        "the text occurred before, under another label": 2,
        "the text occurred before": 1,
        "the text occurs again, under another label": 1,
    }
    assert any("occurs again, under another label (first: line 1)" in f for f in faults.lines())
    with pytest.raises(InputError, match="line 9: the text occurred before, under another label"):
        list(read_labelled(rows, source("classification"), Faults(stop=True)))


def test_labels_that_are_not_the_plans_are_named_on_both_sides() -> None:
    plan = source("label-texts", label_texts={"animal": "beast", "stone": "a stone"})
    faults = Faults(stop=False)
    assert {i.label for i in read_labelled(placed(labelled_rows()), plan, faults)} == {"animal"}
    assert faults.counts == {
        "label 'money' is not among label_texts ['animal', 'stone']": 3,
        "label 'plant' is not among label_texts ['animal', 'stone']": 2,
        "label 'stone' of label_texts is never seen": 1,
    }


def test_a_number_is_one_label_however_it_is_written() -> None:
    rows = placed({"text": repr(label), "label": label} for label in (1, 1.0, "one", 1.5))
    texts = read_labelled(rows, source("clustering"), Faults(stop=True))
    assert [item.label for item in texts] == ["1", "1", "one", "1.5"]


@pytest.mark.parametrize("sizes", [(10, 10), (30, 1), (3, 3, 3), (1, 4)])
def test_as_many_negatives_as_there_are_differ(sizes: tuple[int, ...]) -> None:
    texts = [Labelled("", f"{n} {i}", str(n)) for n, size in enumerate(sizes) for i in range(size)]
    for _, row in by_example(texts, source("clustering"), 0, Faults(stop=False)):
        others = [item.text for item in texts if item.label != row["label"]]
        assert len(set(row["negatives"])) == min(7, len(others))
        assert set(row["negatives"]) <= set(others)
        assert row["negative_labels"] == [text[0] for text in row["negatives"]]


def test_columns_may_have_other_names() -> None:
    plan = source("clustering", keys={"text": "body", "label": "topic"})
    rows = placed([{"body": "x", "topic": 3}])
    assert list(read_labelled(rows, plan, Faults(stop=True))) == [Labelled("line 1", "x", "3")]
