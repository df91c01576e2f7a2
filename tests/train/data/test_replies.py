"""Tests of nvembed_deploy/train/data/replies.py: what models mean is found or named."""

from __future__ import annotations

import json

import pytest

from nvembed_deploy.train.data.prompts import Shape
from nvembed_deploy.train.data.replies import read_example, read_tasks

TASK = "Given a name, find the story"
LONG = "once upon a time there was a name that nobody knew"
EXAMPLE = {"query": "the name", "positive": LONG, "negative": "it was a long time before"}


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(EXAMPLE),
        json.dumps([EXAMPLE]),
        f"Sure [as asked]:\n```json\n{json.dumps(EXAMPLE, indent=1)}\n```\nAnything else?",
        "<think>{maybe} [1]</think>" + json.dumps(EXAMPLE),
        json.dumps(EXAMPLE).replace("nobody knew", "nobody\nknew"),
    ],
    ids=["plain", "in a list", "fenced", "after thoughts", "line break in a string"],
)
def test_an_example_is_found_in_what_models_write(reply: str) -> None:
    row = read_example(reply, Shape.SHORT_LONG, TASK)
    assert isinstance(row, dict)
    assert row["positive"].split() == LONG.split()
    assert {k: v for k, v in row.items() if k != "positive"} == {
        "task_type": "retrieval",
        "instruction": TASK,
        "query": "the name",
        "negatives": ["it was a long time before"],
        "source": "synthetic-short-long",
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "no JSON object"),
        ({"negative": None}, "no text for negative"),
        ({"query": " "}, "no text for query"),
        ({"negative": LONG.upper() + "!"}, "two of its texts are the same"),
        ({"query": "[insert query here]"}, "a placeholder in a text"),
        ({"query": TASK.lower() + "."}, "a text repeats the task"),
        ({"query": LONG + " and again"}, "the document is not longer than the query"),
        ({"query": "a \ud800"}, "a text is no valid Unicode"),
    ],
)
def test_a_bad_example_has_a_reason(changes: dict[str, object] | None, reason: str) -> None:
    reply = "I cannot do that." if changes is None else json.dumps({**EXAMPLE, **changes})
    assert read_example(reply, Shape.SHORT_LONG, TASK) == reason


def test_a_label_is_shorter_than_its_text() -> None:
    turned = {**EXAMPLE, "query": LONG, "positive": "a name"}
    row = read_example(json.dumps(turned), Shape.LONG_SHORT, TASK)
    assert isinstance(row, dict)
    assert row["task_type"] == "classification"
    reason = read_example(json.dumps(EXAMPLE), Shape.LONG_SHORT, TASK)
    assert reason == "the label is not shorter than the text"
    assert isinstance(read_example(json.dumps(EXAMPLE), Shape.SHORT_SHORT, TASK), dict)


@pytest.mark.parametrize(
    ("short", "long", "other"),
    [
        (
            "怎样煮米饭",
            "先把米洗净。再加水。用小火煮二十分钟。最后焖十分钟",
            "米饭在南方是主食。农民春天播种",
        ),
        ("วิธีหุงข้าว", "ล้างข้าวให้สะอาดแล้วเติมน้ำหุงด้วยไฟอ่อนยี่สิบนาที", "ข้าวเป็นอาหารหลักของคนไทยทุกภาค"),
    ],
    ids=["Chinese", "Thai"],
)
def test_lengths_are_told_where_words_have_no_spaces(short: str, long: str, other: str) -> None:
    example = {"query": short, "positive": long, "negative": other}
    assert isinstance(read_example(json.dumps(example), Shape.SHORT_LONG, TASK), dict)
    turned = {**example, "query": long, "positive": short}
    assert isinstance(read_example(json.dumps(turned), Shape.LONG_SHORT, TASK), dict)
    assert isinstance(read_example(json.dumps(turned), Shape.SHORT_LONG, TASK), str)
    assert isinstance(read_example(json.dumps(example), Shape.LONG_SHORT, TASK), str)


def test_tasks_are_instructions_of_a_fitting_length() -> None:
    tasks = [
        "Given a name,  find the\nstory.",
        "too short",
        7,
        "word " * 61,
        "Find [insert] for me now",
    ]
    assert read_tasks(f"Here: {json.dumps(tasks)}") == ["Given a name, find the story"]
    assert read_tasks(json.dumps({"tasks": tasks[:1]})) == ["Given a name, find the story"]
    half = '["Given a \\ud83d name, find it", "Given a name, find it"]'
    assert read_tasks(half) == ["Given a name, find it"]
    assert read_tasks('["no"]') == "no task in the array"
    assert read_tasks("none") == "no JSON array"
