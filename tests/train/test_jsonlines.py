"""Tests of nvembed_deploy/train/jsonlines.py: every line has its place, every fault its words."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.jsonlines import read_lines

LINES = b'{"a": "\xc3\xbc"}\n\n[1]\n"text"\n{"a"\n' + b"[" * 100_000 + b'\n{"a": 2}'


@pytest.mark.parametrize("name", ["l.jsonl", "l.jsonl.gz"])
def test_objects_and_faults_come_with_their_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES) if name.endswith("gz") else LINES)
    assert [(place.removeprefix(f"{path}, line "), row) for place, row in read_lines(path)] == [
        ("1", {"a": "ü"}),
        ("3", "got a list, expected an object"),
        ("4", "got a str, expected an object"),
        ("5", "broken JSON"),
        ("6", "broken JSON"),
        ("7", {"a": 2}),
    ]


def test_another_encoding_is_not_called_broken_json(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes('{"a": "ü"}\n'.encode("latin-1") + b'{"a": 2}')
    assert [row for _, row in read_lines(path)] == ["not UTF-8", {"a": 2}]


@pytest.mark.parametrize("spoil", [lambda b: b[:-9], lambda b: b[:12] + b"\xff\xff" + b[14:]])
def test_damaged_packed_data_are_named(tmp_path: Path, spoil) -> None:
    path = tmp_path / "l.jsonl.gz"
    path.write_bytes(spoil(gzip.compress(LINES)))
    with pytest.raises(InputError, match=r"l\.jsonl\.gz, after line"):
        list(read_lines(path))
