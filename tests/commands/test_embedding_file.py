"""Tests of nvembed_deploy/commands/embedding_file.py: rows on disk as they arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nvembed_deploy.commands.embedding_file import write_jsonl, write_npy

GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.standard_normal((11, 6)).astype(np.float32)


def windows(*sizes: int) -> Iterator[NDArray[np.float32]]:
    start = 0
    for size in sizes:
        yield ROWS[start : start + size]
        start += size


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3), (1, 10)])
def test_windows_become_one_array(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    path = tmp_path / "rows.npy"
    assert write_npy(path, windows(*sizes)) == (11, 6)
    for read in (np.load(path), np.load(path, mmap_mode="r")):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, ROWS)
    whole = tmp_path / "whole.npy"
    np.save(whole, ROWS)
    assert path.read_bytes() == whole.read_bytes()


def test_the_header_of_a_billion_rows_is_as_long_as_that_of_none() -> None:
    """It is written over in place when the number of rows is known."""
    from io import BytesIO

    lengths = set()
    for num_rows in (0, 7, 10**9):
        file = BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, 4096)}
        np.lib.format.write_array_header_1_0(file, header)
        lengths.add(len(file.getvalue()))
    assert len(lengths) == 1


def test_part_of_a_matrix_is_written_as_it_is(tmp_path: Path) -> None:
    write_npy(tmp_path / "rows.npy", iter([ROWS[:, :3]]))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), ROWS[:, :3])


def test_each_record_gets_its_row_across_windows(tmp_path: Path) -> None:
    records = ({"id": i, "text": "ü"} for i in range(11))
    assert write_jsonl(tmp_path / "rows.jsonl", records, windows(4, 4, 3)) == (11, 6)
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    assert [record["id"] for record in read] == list(range(11))
    np.testing.assert_array_equal(np.float32([r["embedding"] for r in read]), ROWS)


def test_half_of_a_cut_emoji_goes_out_as_it_came_in(tmp_path: Path) -> None:
    records = [{"text": "ok", "title": "\ud83d"}, {"text": "ü"}]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, iter(records), windows(2))
    lines = path.read_text("utf-8").splitlines()
    assert [{k: v for k, v in json.loads(line).items() if k != "embedding"} for line in lines] == (
        records
    )
    assert "\\ud83d" in lines[0]
    assert "ü" in lines[1]
