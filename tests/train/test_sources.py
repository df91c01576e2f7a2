"""Tests of nvembed_deploy/train/sources.py: every format, every fault, nothing read twice."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.example import Example, to_example
from nvembed_deploy.train.recipe import SourceSection
from nvembed_deploy.train.room import Room
from nvembed_deploy.train.sources import Source, open_source
from tests import factories
from tests.train.pairs import pair, write_pairs


def read(path: Path, cache: Path, *, skip: bool = False, **options: object) -> Source:
    return open_source(SourceSection(path=path, **options), cache, skip_faults=skip)


def write_as(kind: str, folder: Path) -> Path:
    import datasets

    lines = write_pairs(folder / "pairs.jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    if kind == "jsonl":
        return lines
    if kind == "jsonl.gz":
        packed = folder / "pairs.jsonl.gz"
        packed.write_bytes(gzip.compress(lines.read_bytes()))
        return packed
    table = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        table.to_parquet(folder / "pairs.parquet")
        return folder / "pairs.parquet"
    if kind == "folder of files":
        (folder / "deep" / "er").mkdir(parents=True)
        return lines.rename(folder / "deep" / "er" / "pairs.jsonl").parents[1]
    if kind == "datasets with splits":
        table = datasets.DatasetDict({"train": table})
    table.save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "parquet", "folder of files", "datasets", "datasets with splits"]
)
def test_every_format_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    source = read(write_as(kind, tmp_path / "in"), tmp_path)
    assert [source[i] for i in range(len(source))] == [to_example(pair(i)) for i in range(24)]
    assert source.report.task_types == {"retrieval": 12, "sts": 12}
    assert source.report.faults == {}


FAULTS: dict[str, tuple[str, str]] = {
    "broken JSON": ('{"query": "a', "broken JSON"),
    "no object": ("[1]", "got a list, expected an object"),
    "no query": (json.dumps(pair(1, query=None)), "query is None, expected a text"),
    "empty positive": (json.dumps(pair(1, positive=" ")), "positive is empty"),
    "positive among negatives": (
        json.dumps(pair(1, positive="same", negatives=["x", "same"])),
        "the positive is among the negatives",
    ),
    "positive is the query": (
        json.dumps(pair(1, query="same", positive="same")),
        "the positive is the query itself",
    ),
    "unknown task": (json.dumps(pair(1, task_type="chat")), "task_type is 'chat', expected one"),
    "half a character": (json.dumps(pair(1, query="\ud800 🦀")), "a text is no valid Unicode"),
    "negatives of a wrong kind": (json.dumps(pair(1, negatives="x")), "negatives is no list"),
}


@pytest.mark.parametrize(("line", "problem"), FAULTS.values(), ids=FAULTS)
def test_a_bad_line_stops_with_its_number_or_is_counted(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", 4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, "", *lines[2:]]) + "\n")
    with pytest.raises(InputError) as caught:
        read(path, tmp_path / "cache")
    assert f"{path}, line 3: " in caught.value.problem
    assert problem in caught.value.problem
    source = read(path, tmp_path / "cache", skip=True)
    assert len(source) == 4
    ((reason, count),) = source.report.faults.items()
    assert (problem in reason, count) == (True, 1)


def test_tasks_not_asked_for_are_left_out(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl")
    assert read(path, tmp_path, task_types=["sts"]).report.task_types == {"sts": 12}
    with pytest.raises(InputError, match="has no example left"):
        read(path, tmp_path, task_types=["clustering"])


def test_what_is_missing_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"query": "a", "positive": "b"}) + "\n")
    assert read(path, tmp_path)[0] == Example("retrieval", "", "a", "b", ())


def test_a_folder_that_is_named_as_a_file_is_read_once(tmp_path: Path) -> None:
    import datasets

    parts = tmp_path / "in" / "nq.parquet"  # as Spark writes
    parts.mkdir(parents=True)
    rows = [pair(i) for i in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(parts / "part-00000.parquet")
    source = read(tmp_path / "in", tmp_path)
    assert [source[i] for i in range(len(source))] == [to_example(row) for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_a_null_of_a_table_is_what_is_missing(tmp_path: Path, kind: str) -> None:
    import datasets

    nothing = dict.fromkeys(("task_type", "instruction", "negatives"))
    table = datasets.Dataset.from_list([pair(1), {"query": "a", "positive": "b", **nothing}])
    path = tmp_path / "t.parquet"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(path)
    source = read(path, tmp_path / "cache")
    assert source[1] == Example("retrieval", "", "a", "b", ())


def test_an_instruction_without_room_is_a_fault_of_its_line(
    tmp_path: Path, tiny_base: Path
) -> None:
    path = write_pairs(tmp_path / "p.jsonl", 3)
    path.write_text(path.read_text() + json.dumps(pair(3, instruction="word " * 60)) + "\n")
    room = Room(Tokenizer.load(tiny_base / "tokenizer.json", factories.TINY.text), 32, "tiny")
    section, cache = SourceSection(path=path), tmp_path / "cache"
    with pytest.raises(InputError, match=r"line 4: the instruction's .* leave no room"):
        open_source(section, cache, skip_faults=False, room=room)
    source = open_source(section, cache, skip_faults=True, room=room)
    assert (len(source), list(source.report.faults.values())) == (3, [1])


def test_examples_with_nothing_to_be_compared_with_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    negatives = [["x"], [], [" "], ["the query"], ["the query", "x"]]
    rows = [pair(1, query="the query", negatives=texts) for texts in negatives]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, tmp_path).report.num_alone == 3


def test_equal_examples_have_one_digest_wherever_they_are(tmp_path: Path) -> None:
    digests = set()
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        (tmp_path / kind).mkdir()
        digests.add(read(write_as(kind, tmp_path / kind), tmp_path / "cache").report.digest)
    assert len(digests) == 1
    for name, number in (("other", 23), ("less", 22)):
        rows = [pair(i) for i in range(23)] + [pair(99)] * (number == 23)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        digests.add(read(path, tmp_path / "cache").report.digest)
    assert len(digests) == 3


def test_a_table_is_kept_until_its_source_changes(tmp_path: Path) -> None:
    path, cache = write_pairs(tmp_path / "p.jsonl", 3), tmp_path / "cache"
    read(path, cache)
    (made,) = cache.iterdir()
    read(path, cache)
    assert list(cache.iterdir()) == [made]
    path.write_text(json.dumps(pair(9)) + "\n")
    os.utime(path, (1, 1))
    assert len(read(path, cache)) == 1


def test_a_table_left_half_written_is_written_again(tmp_path: Path) -> None:
    path, cache = write_pairs(tmp_path / "p.jsonl", 3), tmp_path / "cache"
    read(path, cache)
    (made,) = cache.iterdir()
    (made / "report.json").unlink()
    made.rename(made.with_name(made.name + ".partial"))
    assert len(read(path, cache)) == 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("pairs.csv", b"a,b", "has an unknown format"),
        ("p.parquet", b"PAR?", "is no Parquet file"),
        ("p.jsonl.gz", gzip.compress(b'{"query": "a", "positive": "b"}\n')[:-9], "after line"),
        ("p.jsonl", b"\n", "has no example left"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read(tmp_path / name, tmp_path / "cache")
    assert name in caught.value.problem
