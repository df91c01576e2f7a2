"""Tests of tensorwriter.py: what is written is whole, readable by others, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from nvembed_deploy.errors import ArtifactError, CheckpointError
from nvembed_deploy.tensordtype import DTYPES
from nvembed_deploy.tensorfile import open_tensors
from nvembed_deploy.tensorwriter import SafetensorsWriter
from tests.tensor_data import random_bits, same_bits, write


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    known = [d for d in DTYPES if d not in ("BF16", "F8_E4M3", "F8_E5M2")]  # numpy has no names
    tensors = {d: random_bits(d, (4, 6), i) for i, d in enumerate(known)}
    tensors |= {"scalar": np.array(3.5, np.float32), "none": np.zeros((0, 7), np.float16)}
    write(tmp_path / "a.safetensors", tensors)
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"made": "by test"}
        assert set(file.keys()) == set(tensors)
        for name, array in tensors.items():
            assert same_bits(file.get_tensor(name), array)


def test_torch_reads_the_bfloat16_and_float8_we_write(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = {d: random_bits(d, (4, 6), 1) for d in ("BF16", "F8_E4M3", "F8_E5M2")}
    write(tmp_path / "a.safetensors", tensors)
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        bits = tensor.view(getattr(__import__("torch"), f"int{8 * tensor.element_size()}")).numpy()
        assert bits.tobytes() == tensors[name].tobytes()


def test_offsets_size_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": random_bits("F16", (9, 5)), "b": random_bits("BF16", (3, 2))}
    with SafetensorsWriter(path, [("a", "F16", (9, 5)), ("b", "BF16", (3, 2))]) as writer:
        offsets, nbytes = dict(writer.offsets), writer.nbytes
        for name, array in tensors.items():
            writer.write(name, [array])
        assert writer.close() == writer.close()
    content = path.read_bytes()
    assert writer.close() == (nbytes, hashlib.sha256(content).hexdigest())
    assert len(content) == nbytes
    assert offsets["a"] % 4096 == 0
    for name, array in tensors.items():
        assert content[offsets[name] :].startswith(array.tobytes())
        assert open_tensors(path)[name].offset == offsets[name]


def test_a_chunk_larger_than_the_queue_and_a_transposed_one_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.tensorwriter._PIECE_BYTES", 100)
    tensors = {"a": random_bits("F16", (64, 64)), "b": random_bits("F32", (64, 64)).T}
    write(tmp_path / "a.safetensors", tensors)
    for name, entry in open_tensors(tmp_path / "a.safetensors").items():
        assert same_bits(entry.read(), np.ascontiguousarray(tensors[name]))


def endless() -> Iterator[np.ndarray]:
    while True:
        yield np.zeros(4, np.float32)


def failing() -> Iterator[np.ndarray]:
    yield np.zeros(2, np.float32)
    raise CheckpointError("planted", "none")


def out_of_order(writer: SafetensorsWriter) -> None:
    writer.write("b", [np.zeros(4, np.float32)])


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (out_of_order, ValueError, "got 'b', expected 'a'"),
        (
            lambda w: w.write("a", [np.zeros(3, np.float32)]),
            ValueError,
            "got 12 bytes, expected 16",
        ),
        (lambda w: w.write("a", endless()), ValueError, "got 32 bytes, expected 16"),
        (
            lambda w: w.write("a", [np.zeros(4, np.int32)]),
            ValueError,
            "got int32, expected float32",
        ),
        (lambda w: w.write("a", failing()), CheckpointError, "planted"),
        (lambda w: w.close(), ValueError, r"\['a', 'b'\] were not written"),
        (lambda _: None, ValueError, r"\['a', 'b'\] were not written"),
    ],
)
def test_a_fault_while_writing_is_raised_and_leaves_no_file(
    tmp_path: Path,
    fault: Callable[[SafetensorsWriter], object],
    error: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "a.safetensors"
    with (
        pytest.raises(error, match=message),
        SafetensorsWriter(path, [("a", "F32", (4,)), ("b", "F32", (4,))]) as writer,
    ):
        fault(writer)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """Make the kernel refuse to write past some size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield 20_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("num_chunks", [1, 100])
def test_a_disk_that_takes_no_more_is_reported_to_the_caller(
    tmp_path: Path, file_size_limit: int, num_chunks: int
) -> None:
    chunk = np.zeros((1, file_size_limit), np.uint8)
    entries = [("a", "U8", (num_chunks, file_size_limit))]
    with (
        pytest.raises(ArtifactError, match=r"a\.safetensors") as caught,
        SafetensorsWriter(tmp_path / "a.safetensors", entries) as writer,
    ):
        writer.write("a", (chunk for _ in range(num_chunks)))
        writer.close()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from nvembed_deploy.tensorwriter import SafetensorsWriter

shape = (1 << 20,)
with SafetensorsWriter(Path(sys.argv[1]), [("a", "F32", shape), ("b", "F32", shape)]) as writer:
    writer.write("a", [np.zeros(shape, np.float32)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_half_way_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(CheckpointError):
        open_tensors(path)


def test_a_file_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        SafetensorsWriter(tmp_path / "nowhere" / "a.safetensors", [])


@pytest.mark.parametrize(
    "entries",
    [
        [("a", "F32", (1,)), ("a", "F32", (1,))],
        [("a", "F31", (1,))],
        [("__metadata__", "F32", (1,))],
    ],
)
def test_a_declaration_that_no_file_can_hold_is_refused(
    tmp_path: Path, entries: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    with pytest.raises(ValueError, match="repeated, reserved or of an unknown dtype"):
        SafetensorsWriter(tmp_path / "a.safetensors", entries)
    assert list(tmp_path.iterdir()) == []
