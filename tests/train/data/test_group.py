"""Tests of nvembed_deploy/train/data/group.py: the nearest of other labels, in any class."""

from __future__ import annotations

import numpy as np
import pytest

from nvembed_deploy.train.data.group import EmbeddedGroup, groups_of
from nvembed_deploy.train.data.relevance import Relevance
from nvembed_deploy.train.data.rows import Row


def embedded(sizes: dict[str, int], unlabelled: int = 0) -> EmbeddedGroup:
    """Return a group of classes of these sizes; each text is the positive of the one before it."""
    rows: list[Row] = []
    for label, size in sizes.items():
        texts = [f"{label} {i}" for i in range(size)]
        rows += [{"query": texts[i], "positive": texts[i - 1], "label": label} for i in range(size)]
    (group,) = groups_of(rows, [f"none {i}" for i in range(unlabelled)])
    known = Relevance(rows, group.passages, {row["query"]: {row["positive"]} for row in rows})
    random = np.random.default_rng(0)
    query_ND, passage_MD = (
        random.normal(size=(len(texts), 6)).astype(np.float32)
        for texts in (group.queries, group.passages)
    )
    return EmbeddedGroup(group, known, query_ND, passage_MD)


@pytest.mark.parametrize(
    ("sizes", "unlabelled"),
    [
        ({"a": 9, "b": 8}, 0),
        ({"a": 40, "b": 40}, 0),
        ({"a": 60, "b": 3, "c": 2}, 7),
        ({"a": 30, "b": 2}, 0),
        ({"a": 30}, 0),
        ({"a": 3}, 40),
    ],
    ids=["small", "large", "mixed", "few others", "no other", "corpus"],
)
def test_as_many_of_other_labels_are_found_as_asked_for(
    sizes: dict[str, int], unlabelled: int
) -> None:
    group, depth = embedded(sizes, unlabelled), 10
    found = list(group.nearest(depth))
    assert len(found) == len(group.queries)
    for query, text in enumerate(group.queries):
        scores_M = group.passage_MD @ group.query_ND[query]
        unlike = [n for n, other in enumerate(group.passages) if other[0] != text[0]]
        expected = sorted(unlike, key=lambda n: -scores_M[n])[:depth]
        assert found[query].numbers_K.tolist() == expected
        assert np.allclose(found[query].scores_K, scores_M[expected], atol=1e-5)


def test_passages_can_be_scored_by_number() -> None:
    group = embedded({"a": 5})
    near = group.scored(2, [1, 4])
    scores = group.passage_MD[near.numbers_K] @ group.query_ND[2]
    assert sorted(near.numbers_K.tolist()) == [1, 4]
    assert near.scores_K.tolist() == sorted(scores, reverse=True)
    assert group.scored(2, []).numbers_K.tolist() == []


def test_groups_are_of_one_task_source_and_instruction() -> None:
    rows: list[Row] = [
        {"query": "a", "positive": "b", "negatives": ["c", " "]},
        {"query": "a", "positive": "d", "source": "s"},
        {"query": "a", "positive": "e", "task_type": "retrieval", "instruction": ""},
        {"query": "a", "positive": "e", "task_type": "sts", "instruction": "i"},
    ]
    groups = groups_of(rows, ["x", "b"])
    assert [group.queries for group in groups] == [{"a": [0, 2]}, {"a": [1]}, {"a": [3]}]
    assert list(groups[0].passages) == ["b", "c", "e", "x"]
    assert [group.of_passages for group in groups] == ["", "", "i"]
