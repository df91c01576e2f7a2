"""Tests of nvembed_deploy/train/data/relevance.py: what shares a label is relevant, only that."""

from __future__ import annotations

import numpy as np

from nvembed_deploy.train.data.relevance import Labels, Relevance
from nvembed_deploy.train.data.rows import Row

ROWS: list[Row] = [
    {
        "query": "a",
        "positive": "b",
        "label": 1.0,
        "negatives": ["c", "d"],
        "negative_labels": [2, 0],
    },
    {"query": "a", "positive": "e", "label": "3"},
    {"query": "f", "positive": "e", "negatives": ["g", " "], "negative_labels": [float("nan"), 7]},
]
PASSAGES = {text: number for number, text in enumerate("bcdegh")}
KNOWN = Relevance(ROWS, PASSAGES, {"a": {"b", "e"}, "f": {"e"}})


def test_a_text_has_the_labels_of_all_its_rows() -> None:
    labels = {text: sorted(KNOWN.labels(text)) for text in "abcdefgh"}
    assert labels == {
        "a": ["1", "3"],
        "b": ["1"],
        "c": ["2"],
        "d": ["0"],
        "e": ["3"],
        "f": [],
        "g": [],
        "h": [],
    }
    assert [KNOWN.label(text) for text in "abg"] == [None, "1", None]


def test_a_text_that_shares_any_label_is_relevant_and_no_other() -> None:
    assert [numbers.tolist() for numbers in KNOWN.relevant("a")] == [
        [PASSAGES["b"], PASSAGES["e"]],
        [],
    ]
    other = np.array([PASSAGES[text] for text in "cdgh"])
    assert KNOWN.are_others("a", other).tolist() == [True, True, False, False]
    assert [numbers.tolist() for numbers in KNOWN.relevant("f")] == [[], [PASSAGES["e"]]]
    assert not KNOWN.are_others("f", other).any()


def test_passages_are_known_by_their_labels() -> None:
    assert KNOWN.alike(Labels("13")).tolist() == [PASSAGES["b"], PASSAGES["e"]]
    assert KNOWN.alike(Labels()).tolist() == []


def test_the_query_is_relevant_where_it_is_a_passage() -> None:
    known = Relevance([], {"c": 0, "b": 1, "a": 2}, {"a": {"b"}})
    assert [numbers.tolist() for numbers in known.relevant("a")] == [[], [1, 2]]
