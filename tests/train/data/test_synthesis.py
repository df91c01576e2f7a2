"""Tests of nvembed_deploy/train/data/synthesis.py: nothing asked twice, nothing made twice."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.prompts import Message, Shape
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.data.synthesis import Order, Synthesis, open_log
from nvembed_deploy.train.example import fault_of
from tests.train.data.stub import good_reply

ORDER = Order(tasks=10, examples_a_task=2, concurrency=4)


class Model:
    """Answers well, but for its faults: replies by the number of the request."""

    def __init__(self, faults: dict[int, str] | None = None, dies_at: int = -1) -> None:
        """Count from 1."""
        self.faults, self.dies_at = faults or {}, dies_at
        self.prompts: list[str] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __call__(self, messages: Sequence[Message]) -> str:
        """Answer."""
        prompt = messages[-1]["content"]
        with self._lock:
            number = next(self._numbers)
            self.prompts.append(prompt)
        if number == self.dies_at:
            raise InputError("the server fell", "see to it")
        return self.faults.get(number) or good_reply(prompt, crc32(prompt.encode()))


def run(folder: Path, model: Model, order: Order = ORDER) -> tuple[list[Row], Synthesis]:
    with open_log(folder, order, "m") as log:
        synthesis = Synthesis(model, order, log)
        return list(synthesis.run()), synthesis


def test_shapes_have_equal_parts_and_every_row_is_an_example(tmp_path: Path) -> None:
    model = Model()
    rows, _ = run(tmp_path, model)
    assert [fault_of(row) for row in rows] == [None] * 20
    assert Counter(row["source"] for row in rows) == {
        "synthetic-short-long": 8,
        "synthetic-long-short": 6,
        "synthetic-short-short": 6,
    }
    assert len({row["instruction"] for row in rows}) == 10
    assert len(model.prompts) == len(set(model.prompts)) == 3 + 20
    assert sum(ORDER.tasks_of(shape) for shape in Shape) == ORDER.tasks


def test_the_order_of_rows_does_not_depend_on_who_answers_first(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "1", Model())
    order = Order(tasks=10, examples_a_task=2, concurrency=1)
    assert run(tmp_path / "2", Model(), order)[0] == one


@pytest.mark.parametrize("dies_at", [1, 2, 4, 9, 23])
def test_a_run_that_failed_asks_only_what_is_open(tmp_path: Path, dies_at: int) -> None:
    whole, _ = run(tmp_path / "whole", Model())
    order = Order(tasks=10, examples_a_task=2, concurrency=1)
    cut, model = Model(dies_at=dies_at), Model()
    with pytest.raises(InputError, match="the server fell"):
        run(tmp_path / "cut", cut, order)
    rows, _ = run(tmp_path / "cut", model, order)
    assert rows == whole
    assert set(cut.prompts) & set(model.prompts) == {cut.prompts[dies_at - 1]}
    assert len(set(cut.prompts) | set(model.prompts)) == 23


def test_a_finished_run_asks_nothing_and_a_larger_order_only_the_rest(tmp_path: Path) -> None:
    run(tmp_path, Model())
    model = Model()
    run(tmp_path, model)
    assert model.prompts == []
    rows, _ = run(tmp_path, model, Order(tasks=10, examples_a_task=3))
    assert (len(rows), len(model.prompts)) == (30, 10)


def test_a_useless_reply_is_asked_for_again_in_other_words(tmp_path: Path) -> None:
    model = Model(dict.fromkeys((1, 5, 6), "I would rather not."))
    rows, synthesis = run(tmp_path, model)
    assert len(rows) == 20
    assert sum(synthesis.faults.values()) == 3
    assert set(synthesis.faults) <= {"no JSON array", "no JSON object"}
    assert len(model.prompts) == len(set(model.prompts)) == 26


def test_a_model_that_is_of_no_use_is_named(tmp_path: Path) -> None:
    def useless(messages: Sequence[Message]) -> str:
        prompt = messages[-1]["content"]
        return good_reply(prompt, 1) if prompt.startswith("Think") else "no"

    none = pytest.raises(InputError, match=r"20 requests gave no example; .*no JSON object \(60\)")
    with open_log(tmp_path, ORDER, "m") as log, none:
        list(Synthesis(useless, ORDER, log).run())


def test_what_a_model_repeats_is_kept_once(tmp_path: Path) -> None:
    def parrot(messages: Sequence[Message]) -> str:
        prompt = messages[-1]["content"]
        if not prompt.startswith("Think"):
            return good_reply(prompt, 7)
        tasks = [
            "Given a word, find its sense.",
            "given a word find its SENSE",
            "Find a word for it",
        ]
        return json.dumps(tasks)

    with open_log(tmp_path, ORDER, "m") as log:
        synthesis = Synthesis(parrot, ORDER, log)
        rows = list(synthesis.run())
    assert len(rows) == 1
    assert synthesis.repeated == 3 * 2 * 2 - 1  # two distinct tasks of each shape, two examples


def test_a_label_may_be_the_positive_of_many_and_a_document_of_one(tmp_path: Path) -> None:
    rows = [
        {"task_type": task_type, "query": query, "positive": "the same"}
        for task_type in ("classification", "retrieval")
        for query in (f"{task_type} one", f"{task_type} two", f"{task_type} ONE")
    ]
    with open_log(tmp_path, ORDER, "m") as log:
        kept = list(Synthesis(lambda _: "", ORDER, log)._distinct(iter(rows)))
    assert kept == [rows[0], rows[1], rows[3]]


def test_another_model_or_seed_is_another_log(tmp_path: Path) -> None:
    run(tmp_path, Model())
    with pytest.raises(InputError, match="'model': 'm'"):
        open_log(tmp_path, ORDER, "other")
    with pytest.raises(InputError, match="'seed': 0"):
        open_log(tmp_path, Order(tasks=10, seed=1), "m")


def test_a_model_that_thinks_up_no_task_is_told_so(tmp_path: Path) -> None:
    none = pytest.raises(InputError, match=r"no task was found; .*: no JSON array \(45\)")
    with open_log(tmp_path, ORDER, "m") as log, none:
        list(Synthesis(lambda _: "Sure, I'd be glad to help.", ORDER, log).run())


def test_what_was_of_no_use_is_asked_for_again_in_the_next_run(tmp_path: Path) -> None:
    def cut(messages: Sequence[Message]) -> str:
        prompt = messages[-1]["content"]
        return good_reply(prompt, 1) if prompt.startswith("Think") else '{"query": "cut o'

    with open_log(tmp_path, ORDER, "m") as log, pytest.raises(InputError, match="no example"):
        list(Synthesis(cut, ORDER, log).run())
    model = Model()
    rows, _ = run(tmp_path, model)
    assert (len(rows), len(model.prompts)) == (20, 20)


def test_tasks_that_come_late_do_not_push_out_those_with_examples(tmp_path: Path) -> None:
    order = Order(tasks=6, examples_a_task=1, concurrency=1)

    def mean(messages: Sequence[Message]) -> str:
        """Give one task a request, none at the first request of each shape."""
        prompt = messages[-1]["content"]
        if not prompt.startswith("Think"):
            return good_reply(prompt, crc32(prompt.encode()))
        asked.append(prompt)
        number = (len(asked) - 1) % 7  # three tries at the first, then four other requests
        return "no" if number < 3 or number > 3 else json.dumps([f"Find one thing {len(asked)}"])

    asked: list[str] = []
    with open_log(tmp_path, order, "m") as log:
        first = list(Synthesis(mean, order, log).run())
    assert first
    rows, _ = run(tmp_path, Model(), order)
    assert len(rows) == 6
    assert {row["query"] for row in first} <= {row["query"] for row in rows}
