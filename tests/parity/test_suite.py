"""Tests of nvembed_deploy/parity/suite.py: what a task folder holds, and what is wrong with it."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.suite import BUILT_IN, KINDS, count_texts, count_words, read_suite

RETRIEVAL = "python_code_retrieval"
LABELED = "wordnet_classification"


def test_the_built_in_suite_is_small_and_has_most_kinds() -> None:
    tasks = read_suite(BUILT_IN)
    assert {task.kind for task in tasks} == KINDS.keys() - {"summarization"}
    assert all(task.instruction for task in tasks)
    assert 1000 < sum(count_texts(task) for task in tasks) < 2000
    assert sum(count_words(task) for task in tasks) < 30_000
    assert sum(p.stat().st_size for p in BUILT_IN.rglob("*") if p.is_file()) <= 300_000


def test_named_tasks_alone_are_read() -> None:
    assert [t.name for t in read_suite(BUILT_IN, (RETRIEVAL,))] == [RETRIEVAL]
    with pytest.raises(InputError, match="has no task nothing") as caught:
        read_suite(BUILT_IN, ("nothing",))
    assert RETRIEVAL in caught.value.fix


def append(name: str, line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(line + "\n")

    return change


def rewrite(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "task.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "kind": (rewrite(type="poetry"), "type is 'poetry'"),
    "no file": (lambda f: (f / "corpus.jsonl").unlink(), "corpus.jsonl: "),
    "empty": (lambda f: (f / "corpus.jsonl").write_text("\n"), "corpus has no row"),
    "broken": (append("queries.jsonl", "{"), "queries.jsonl, line 51: broken JSON"),
    "no text": (append("corpus.jsonl", '{"_id": "x"}'), "line 71: text is None"),
    "text of a wrong kind": (append("corpus.jsonl", '{"_id": "x", "text": 3}'), "text is 3"),
    "unknown query": (append("qrels.tsv", "q?\td1\t1"), "qrels.tsv, line 52: 'q?"),
    "no score": (append("qrels.tsv", "q1\td1"), "qrels.tsv, line 52"),
    "an id twice": (
        append("corpus.jsonl", '{"_id": "d4", "text": "x"}'),
        "corpus.jsonl, line 71: _id is 'd4', as on line 1",
    ),
    "no qrels": (lambda f: (f / "qrels.tsv").write_text("\n"), "qrels has no row"),
    "no json": (lambda f: (f / "task.json").write_text("["), "task.json: "),
    "a list": (lambda f: (f / "task.json").write_text("[1]"), "got a JSON list, expected an obj"),
    "a word": (lambda f: (f / "task.json").write_text('"x"'), "got a JSON str, expected an object"),
    "nested": (lambda f: (f / "task.json").write_text("[" * 9**5), "task.json: "),
    "kinds": (rewrite(type=["retrieval"]), "type is ['retrieval']"),
    "instructions": (rewrite(instruction=["a"]), "instruction is a list, expected a string"),
    "half an instruction": (rewrite(instruction="\ud800"), "instruction has half of a surrogate"),
    "name that leads out": (rewrite(name="../../x"), "name is '../../x'"),
    "name of two folders": (rewrite(name="a/b"), "name is 'a/b'"),
    "name with a backslash": (rewrite(name="a\\b"), "name is 'a"),
    "hidden name": (rewrite(name=".a"), "name is '.a'"),
    "name with NUL": (rewrite(name="a\0b"), "name is 'a\\x00b'"),
    "half a name": (rewrite(name="\ud800"), "name is '\\ud800'"),
    "number for a name": (rewrite(name=5), "name is 5"),
    "name of blanks": (rewrite(name="  "), "name is '  '"),
    "long name": (rewrite(name="ü" * 150), "name has 300 bytes, expected at most 200"),
}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_file_and_line(
    tmp_path: Path, fault: Callable[[Path], object], problem: str
) -> None:
    folder = shutil.copytree(BUILT_IN / RETRIEVAL, tmp_path / "suite" / RETRIEVAL)
    fault(folder)
    with pytest.raises(InputError) as caught:
        read_suite(tmp_path / "suite")
    assert problem in caught.value.problem.removeprefix(str(folder) + "/")
    assert caught.value.fix


@pytest.mark.parametrize("name", ["my task ü", "x" * 200, "MTEB(eng, v2)", "a.b", "[red]"])
def test_a_name_may_be_any_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(BUILT_IN / RETRIEVAL, tmp_path / "suite" / "first")
    rewrite(name=name)(folder)
    assert [task.name for task in read_suite(tmp_path / "suite")] == [name]


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        shutil.copytree(BUILT_IN / RETRIEVAL, tmp_path / "suite" / folder)
    with pytest.raises(InputError, match="name is 'python_code_retrieval', as in first"):
        read_suite(tmp_path / "suite")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('"test"', '"dev"'), r"line \d+: split is 'dev'"),
        (('"test"', '"train"'), "no row is of split test"),
        (('"train"', '"test"'), "no row is of split train"),
    ],
)
def test_splits_that_nothing_can_be_judged_on_are_refused(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    folder = shutil.copytree(BUILT_IN / LABELED, tmp_path / "suite" / LABELED)
    path = folder / "labeled.jsonl"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=problem):
        read_suite(tmp_path / "suite")


def test_a_label_other_than_0_and_1_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(BUILT_IN / "wordnet_pairs", tmp_path / "suite" / "pairs")
    append("pairs.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 2}')(folder)
    with pytest.raises(InputError, match="line 61: label is 2"):
        read_suite(tmp_path / "suite")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    folder = shutil.copytree(BUILT_IN / RETRIEVAL, tmp_path / "suite" / RETRIEVAL)
    for path in folder.iterdir():
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    (task,) = read_suite(tmp_path / "suite")
    assert task.tables == read_suite(BUILT_IN, (RETRIEVAL,))[0].tables


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda p: None])
def test_a_folder_without_tasks_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "suite")
    with pytest.raises(InputError, match="suite"):
        read_suite(tmp_path / "suite")
