"""Tests of nvembed_deploy/train/data/scored.py: similar pairs both ways, negatives unlike."""

from __future__ import annotations

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.rows import Faults
from nvembed_deploy.train.data.scored import Scored, both_directions, read_scored
from tests.train.data.raw import placed, source

PAIRS = [
    Scored("line 1", "a cat sat on the mat", "the cat is on a mat", 4.0),
    Scored("line 2", "a cat sat on the mat", "the cat left the mat", 3.0),
    Scored("line 3", "the cat left the mat", "a dog sat on the mat", 2.5),
    Scored("line 4", "it rains", "the rain falls", 3.999),
    Scored("line 5", "a cat sat on the mat", "a dog sat on the mat", 2.5),  # no more: a negative
]


def test_pairs_from_the_score_on_are_taken_in_both_directions() -> None:
    rows = list(both_directions(PAIRS, source("sts")))
    assert [(place, row["query"], row["positive"]) for place, row in rows] == [
        ("line 1", "a cat sat on the mat", "the cat is on a mat"),
        ("line 1", "the cat is on a mat", "a cat sat on the mat"),
    ]


def test_negatives_share_words_and_are_not_known_to_be_alike() -> None:
    first, second = (row["negatives"] for _, row in both_directions(PAIRS, source("sts")))
    assert first == ["a dog sat on the mat", "the rain falls"]  # the cat left: 3.0 is too alike
    assert second[0] in {"a dog sat on the mat", "the cat left the mat"}
    assert set(second) >= {"the cat left the mat", "a dog sat on the mat"}


def test_a_sentence_in_another_case_is_no_negative() -> None:
    others = ("A CAT sat on the mat!", "The cat is on a mat.", "on the mat sat a cat")
    more = [Scored("line 6", text, "it rains", 0.0) for text in others]
    negatives = [row["negatives"] for _, row in both_directions([*PAIRS, *more], source("sts"))]
    assert [set(found) & set(others) for found in negatives] == [{others[2]}, {others[2]}]


def test_there_are_as_many_negatives_as_asked_for() -> None:
    for count in (0, 1):
        rows = both_directions(PAIRS, source("sts", negatives=count))
        assert {len(row["negatives"]) for _, row in rows} == {count}


def test_another_scale_is_brought_to_five() -> None:
    rows = placed([{"sentence1": "a", "sentence2": "b", "score": 0.8}])
    (pair,) = read_scored(rows, source("sts", top_score=1), Faults(stop=True))
    assert pair.score == 4.0


FAULTS = {
    "no text": ({"sentence1": None}, "sentence1 is None, expected a text"),
    "empty": ({"sentence2": " "}, "sentence2 is empty"),
    "half a pair": ({"sentence2": "a\ud800"}, "sentence2 is no valid Unicode"),
    "no score": ({"score": "high"}, "score is 'high', expected 0 to 5"),
    "huge": ({"score": 10**400}, f"score is 1{'0' * 59}, expected 0 to 5"),
    "too high": ({"score": 87}, "score is 87, expected 0 to 5"),
    "not a number": ({"score": float("nan")}, "score is nan, expected 0 to 5"),
    "a flag": ({"score": True}, "score is True, expected 0 to 5"),
}


@pytest.mark.parametrize(("changes", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_bad_row_is_named_and_left_out(changes: dict[str, object], reason: str) -> None:
    good = {"sentence1": "a", "sentence2": "b", "score": 0}
    rows, faults = placed([good, {**good, **changes}]), Faults(stop=False)
    assert len(list(read_scored(rows, source("sts"), faults))) == 1
    assert faults.counts == {reason: 1}
    with pytest.raises(InputError, match="line 2"):
        list(read_scored(rows, source("sts"), Faults(stop=True)))
