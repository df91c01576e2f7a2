"""Tests of nvembed_deploy/parity/cache.py: each text once, whoever else writes or is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.filelock import wait_for
from nvembed_deploy.parity.cache import EmbeddingCache, text_key

WRITER = """
import sys
from pathlib import Path
import numpy as np
from nvembed_deploy.parity.cache import EmbeddingCache, text_key

folder, first, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache = EmbeddingCache(folder, 4)
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, 300, step):
    numbers = [number, (number + 1) % 300, (number + 7) % 300]
    keys = [text_key("", str(n)) for n in numbers]
    cache.add(keys, np.array([[n] * 4 for n in numbers], np.float32))
    assert cache.get(keys)[:, 0].tolist() == numbers
"""
"""Stores the row n, n, n, n for the text n, of many texts that other processes store too."""


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 4), np.float32)


def keys(*texts: str) -> list[bytes]:
    return [text_key("", text) for text in texts]


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "m", 4)
    assert cache.missing(keys("a", "b", "a")) == [0, 1]
    cache.add(keys("a", "b"), rows(2))
    for opened in (cache, EmbeddingCache(tmp_path / "m", 4)):
        assert opened.missing(keys("b", "c", "a")) == [1]
        assert np.array_equal(opened.get(keys("b", "a", "b")), rows(2)[[1, 0, 1]])
        assert opened.get([]).shape == (0, 4)


@pytest.mark.parametrize(("name", "cut"), [("keys.bin", 5), ("rows.bin", 3)])
def test_a_write_that_was_cut_short_is_forgotten(tmp_path: Path, name: str, cut: int) -> None:
    cache = EmbeddingCache(tmp_path, 4)
    cache.add(keys("a", "b"), rows(2))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-cut])
    again = EmbeddingCache(tmp_path, 4)
    assert again.missing(keys("a", "b")) == [1]
    again.add(keys("b"), rows(2)[1:])
    assert np.array_equal(EmbeddingCache(tmp_path, 4).get(keys("a", "b")), rows(2))


def test_two_caches_of_one_folder_keep_keys_and_rows_in_step(tmp_path: Path) -> None:
    one, other = (EmbeddingCache(tmp_path, 4) for _ in range(2))
    for number, (cache, text) in enumerate([(one, "a"), (other, "b"), (other, "c"), (one, "d")]):
        cache.add(keys(text), rows(4)[[number]])
    for cache in (one, other, EmbeddingCache(tmp_path, 4)):
        assert cache.missing(keys("a", "b", "c", "d")) == []
        assert np.array_equal(cache.get(keys("d", "c", "b", "a")), rows(4)[::-1])


def test_what_another_run_has_stored_is_not_stored_twice(tmp_path: Path) -> None:
    one, other = (EmbeddingCache(tmp_path, 4) for _ in range(2))
    assert one.missing(keys("a", "b")) == other.missing(keys("b", "a")) == [0, 1]
    one.add(keys("a", "b"), rows(2))
    other.add(keys("b", "c", "a", "c"), rows(4, seed=1))
    assert (tmp_path / "keys.bin").read_bytes() == b"".join(keys("a", "b", "c"))
    for cache in (one, other):
        assert cache.missing(keys("a", "b", "c")) == []
        expected = np.vstack([rows(2), rows(4, seed=1)[1]])
        assert np.array_equal(cache.get(keys("a", "b", "c")), expected)


@pytest.mark.parametrize("name", ["keys.bin", "rows.bin"])
def test_what_a_killed_run_left_is_cut_by_those_that_go_on(tmp_path: Path, name: str) -> None:
    cache = EmbeddingCache(tmp_path, 4)
    cache.add(keys("a"), rows(2)[:1])
    with (tmp_path / name).open("ab") as file:
        file.write(bytes(50))
    cache.add(keys("b"), rows(2)[1:])
    for opened in (cache, EmbeddingCache(tmp_path, 4)):
        assert np.array_equal(opened.get(keys("a", "b")), rows(2))


def test_processes_that_write_at_once_lose_and_mix_up_nothing(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, tmp_path, str(i), "2"] for i in range(3)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen(command, text=True, **pipes) for command in commands]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert (tmp_path / "keys.bin").stat().st_size == 300 * 32
    found = EmbeddingCache(tmp_path, 4).get(keys(*map(str, range(300))))
    assert np.array_equal(found, np.repeat(np.arange(300, dtype=np.float32)[:, None], 4, 1))


def test_who_appends_waits_for_who_holds_the_cache(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 4)
    with (tmp_path / "keys.bin").open("rb") as held:
        assert wait_for(held.fileno())
        thread = threading.Thread(target=cache.add, args=(keys("a"), rows(1)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert (tmp_path / "rows.bin").stat().st_size == 0
    thread.join(30)
    assert cache.missing(keys("a")) == []


def test_a_write_costs_no_more_where_much_is_stored(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 1024)
    cache.add(keys(*map(str, range(1000))), np.zeros((1000, 1024), np.float32))
    row_bytes, stored_bytes = 4 * 1024, 4 * 1024 * 1000
    tracemalloc.start()
    cache.add(keys("new"), np.ones((1, 1024), np.float32))
    cache.get(keys("new", "0"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row_bytes < most < stored_bytes / 40  # 26 kB measured


def test_an_instruction_is_part_of_the_text() -> None:
    assert len({text_key("a", "b"), text_key("", "ab"), text_key("ab", ""), text_key("", "b")}) == 4
    assert len(text_key("", "half \ud800 pair")) == 32
