"""Tests of nvembed_deploy/train/data/build.py: every kind gives what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.build import Builder
from nvembed_deploy.train.data.plan import DataPlan
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.example import fault_of
from tests.train.data import raw

STS = [
    {"sentence1": "a cat sat", "sentence2": "the cat sits", "score": 5},
    {"sentence1": "a dog ran", "sentence2": "money is tight", "score": 0.5},
]
PAIRS: list[Row] = [
    {"query": "who barks?", "positive": raw.ANIMALS[1], "negatives": list(raw.MONEY)},
    {"query": "who lends?", "positive": raw.MONEY[0], "instruction": "own", "task_type": "sts"},
]
ROWS = {
    "pairs": PAIRS,
    "sts": STS,
    "label-texts": raw.labelled_rows(),
    "classification": raw.labelled_rows(),
    "clustering": raw.labelled_rows(),
}
TASK_TYPES = {"pairs": "retrieval", "label-texts": "classification"}


def plan(tmp_path: Path, kind: str, rows: list[Any], **values: Any) -> DataPlan:
    top = {key: values.pop(key) for key in ("seed", "evaluation") if key in values}
    path = raw.write(tmp_path / f"{kind}.jsonl", rows)
    section = raw.source(kind, path, **values).model_dump()
    return DataPlan.model_validate({"source": [section], **top})


def build(*args: Any, skip: bool = False, **values: Any) -> tuple[list[Row], Builder]:
    builder = Builder(plan(*args, **values), skip_bad=skip)
    return list(builder.rows()), builder


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_gives_rows_of_the_format(tmp_path: Path, kind: str) -> None:
    rows, builder = build(tmp_path, kind, ROWS[kind])
    for row in rows:
        assert fault_of(row) is None
        assert list(row)[:6] == [
            "task_type",
            "instruction",
            "query",
            "positive",
            "negatives",
            "source",
        ]
        assert (row["source"], row["instruction"]) == ("raw", "find it")
    assert rows[0]["task_type"] == TASK_TYPES.get(kind, kind)
    assert builder.reports[0].kept == len(rows) == (2 if kind in ("sts", "pairs") else 8)


def test_pairs_keep_their_own_instruction_if_the_plan_has_none(tmp_path: Path) -> None:
    rows, _ = build(tmp_path, "pairs", PAIRS, instruction=None)
    assert [(row["instruction"], row["task_type"]) for row in rows] == [
        ("", "retrieval"),
        ("own", "sts"),
    ]


@pytest.mark.parametrize(
    ("kind", "held_out"),
    [("pairs", PAIRS[0]["query"]), ("sts", "a cat sat"), ("clustering", raw.PLANTS[0])],
)
def test_what_an_evaluation_holds_is_in_no_example(
    tmp_path: Path, kind: str, held_out: str
) -> None:
    (tmp_path / "suite").mkdir()
    raw.write(tmp_path / "suite" / "test.jsonl", [{"text": held_out.upper()}])
    rows = ROWS[kind] + (STS[:1] * (kind == "sts") and [{**STS[0], "sentence1": "cats sit"}])
    built, builder = build(
        tmp_path, kind, rows, evaluation=[{"path": tmp_path / "suite"}], skip=True
    )
    assert built
    assert held_out not in {t for r in built for t in (r["query"], r["positive"], *r["negatives"])}
    assert builder.reports[0].near_duplicates == {held_out: held_out.upper()}


def test_a_negative_of_an_evaluation_goes_and_its_pair_stays(tmp_path: Path) -> None:
    suite = raw.write(tmp_path / "suite.jsonl", [{"text": raw.MONEY[0]}])
    rows, _ = build(tmp_path, "pairs", PAIRS[:1], evaluation=[{"path": suite}])
    assert rows[0]["negatives"] == list(raw.MONEY[1:])


def test_negatives_keep_their_labels_whatever_of_them_goes(tmp_path: Path) -> None:
    suite = raw.write(tmp_path / "suite.jsonl", [{"text": raw.MONEY[0]}])
    negatives = [raw.MONEY[0], " ", *raw.PLANTS, raw.PLANTS[0], *raw.MONEY]
    labels = [1, 9, 2, 3, 2, 4, 5, None]
    row = {**PAIRS[0], "negatives": negatives, "label": "x", "negative_labels": labels}
    values: dict[str, Any] = {"evaluation": [{"path": suite}], "negatives": 3}
    rows, _ = build(tmp_path, "pairs", [row], **values)
    assert rows[0]["negatives"] == [*raw.PLANTS, raw.MONEY[1]]
    assert rows[0]["negative_labels"] == ["2", "3", "5"]
    rows, _ = build(tmp_path, "clustering", raw.labelled_rows(), limit=3)
    labels_of = {item["text"]: item["label"] for item in raw.labelled_rows()}
    for row in rows:
        assert row["negative_labels"] == [labels_of[text] for text in row["negatives"]]


def test_a_limit_is_a_random_part_that_the_seed_decides(tmp_path: Path) -> None:
    def queries(seed: int) -> list[str]:
        rows, builder = build(tmp_path, "clustering", raw.labelled_rows(), limit=3, seed=seed)
        assert (builder.reports[0].kept, builder.reports[0].over_limit) == (3, 5)
        return [row["query"] for row in rows]

    assert queries(1) == queries(1)
    assert len({tuple(queries(seed)) for seed in range(8)}) > 1


FAULTS = {
    "empty positive": ({"query": "a", "positive": ""}, "positive is empty"),
    "positive twice": (
        {"query": "a", "positive": "b", "negatives": ["b"]},
        "the positive is among the negatives",
    ),
    "labels of others": (
        {"query": "a", "positive": "b", "negatives": ["c"], "negative_labels": [1, 2]},
        "got 2 negative_labels, expected 1, one a negative",
    ),
    "again": (PAIRS[0], "query and positive occurred before"),
    "broken": ('{"query": "a', "broken JSON"),
}


@pytest.mark.parametrize(("line", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_bad_row_stops_with_its_line_or_is_counted(
    tmp_path: Path, line: object, reason: str
) -> None:
    lines = [*PAIRS, line]
    with pytest.raises(InputError, match=f"line 3: {reason}"):
        build(tmp_path, "pairs", lines)
    rows, builder = build(tmp_path, "pairs", lines, skip=True)
    assert len(rows) == 2
    assert builder.reports[0].faults.counts == {reason: 1}


def test_only_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    lines = [{**row, "split": "test"} for row in PAIRS[:1]] + PAIRS[1:]
    rows, _ = build(tmp_path, "pairs", lines, where={"split": "test"})
    assert [row["query"] for row in rows] == ["who barks?"]


def test_a_source_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raw has no example left: 1 x broken JSON"):
        build(tmp_path, "pairs", ["{"], skip=True)
    suite = raw.write(tmp_path / "suite.jsonl", PAIRS)
    with pytest.raises(InputError, match="texts are nearly in an evaluation"):
        build(tmp_path, "pairs", PAIRS, evaluation=[{"path": suite}])
    with pytest.raises(InputError, match="no row fits"):
        build(tmp_path, "pairs", PAIRS, where={"split": "x"})
