"""Tests of tensorfile.py: what lies on disk is read bit by bit, or refused by name."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.tensordtype import DTYPES
from nvembed_deploy.tensorfile import open_tensor_folder, open_tensors
from tests.tensor_data import random_bits, same_bits, write

INDEX = "model.safetensors.index.json"


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def item(
    start: int, end: int, shape: list[int] | None = None, dtype: str = "U8"
) -> dict[str, object]:
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_written_by_us_is_read_back_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    array = random_bits(dtype, (5, 3))
    write(tmp_path / "a.safetensors", {"a": array})
    assert same_bits(open_tensors(tmp_path / "a.safetensors")["a"].read(), array)


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    tensors = {d: random_bits(d, (4, 6), i) for i, d in enumerate(DTYPES)}
    tensors |= {"scalar": np.array(3.5, np.float32), "none": np.zeros((0, 7), np.float16)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "np"})
    entries = open_tensors(tmp_path / "a.safetensors")
    assert set(entries) == set(tensors)
    for name, array in tensors.items():
        assert same_bits(entries[name].read(), array)


ENDS = st.none() | st.integers(-8, 8)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
    rows=st.builds(slice, ENDS, ENDS, st.sampled_from([None, 1])),
    align=st.sampled_from([1, 8, 64, 4096]),
)
def test_rows_are_the_rows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, ...],
    rows: slice,
    align: int,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.safetensors"
    array = random_bits(dtype, shape)
    write(path, {"before": random_bits("U8", (3,)), "a": array, "after": array}, align=align)
    entry = open_tensors(path)["a"]
    assert same_bits(entry.read(rows), array[rows])
    assert same_bits(entry.read(), array)


def test_rows_with_a_step_and_rows_of_a_scalar_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.zeros((4, 2), np.float32), "scalar": np.array(1.0)})
    entries = open_tensors(path)
    with pytest.raises(ValueError, match="contiguous"):
        entries["a"].read(slice(0, 4, 2))
    with pytest.raises(ValueError, match="scalar"):
        entries["scalar"].read(slice(0, 1))


FAULTS = {
    "empty": (b"", "got 0 bytes, expected at least 10: it is cut"),
    "short": (b"\2\0\0\0\0\0\0\0{", "got 9 bytes, expected at least 10: it is cut"),
    "header longer than file": (raw({})[:8] + b"{", "cut"),
    "header length": ((999).to_bytes(8, "little") + b"{}" * 9, "should have 999 bytes"),
    "not JSON": (raw(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "nested": (raw(b'{"a":' * 100_000), "not JSON"),
    "a list": (raw(b"[1, 2]" * 9), "no safetensors file"),
    "a web page": (b"<!DOCTYPE html><html>" * 9, "no safetensors file"),
    "repeated key": (
        raw(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}'),
        "key 'a' is there twice",
    ),
    "no entry": (raw({"a": 1}), "'a': got {}, expected dtype"),
    "no offsets": (raw({"a": {"dtype": "U8", "shape": [1]}}), "'a'.*expected dtype"),
    "one offset": (
        raw({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0]}}),
        "'a'.*expected dtype",
    ),
    "three offsets": (
        raw({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}),
        "'a'.*expected dtype",
    ),
    "negative shape": (raw({"a": item(0, 4, [-4])}, b"1234"), "'a'.*expected dtype"),
    "unknown dtype": (raw({"a": item(0, 4, dtype="F4")}, b"1234"), "'a' has dtype 'F4'"),
    "dtype of a wrong kind": (
        raw({"a": {**item(0, 4), "dtype": []}}, b"1234"),
        r"'a' has dtype \[\], expected one of",
    ),
    "size": (raw({"a": item(0, 4, [3])}, b"1234"), r"'a': got 4 bytes, expected 3 for U8 \[3\]"),
    "overflow": (raw({"a": item(0, 4, [1 << 62, 1 << 62])}, b"1234"), "'a': got 4 bytes"),
    "outside": (raw({"a": item(0, 9)}, b"1234"), "'a' ends at byte 9 .* has 4: it is cut"),
    "overlap": (raw({"a": item(0, 4), "b": item(2, 6)}, b"123456"), "'b': got.* 2, .*overlap"),
    "hole": (raw({"a": item(0, 2), "b": item(4, 6)}, b"123456"), "'b': got .* 4, .*a hole"),
    "hole at the start": (raw({"a": item(2, 4)}, b"1234"), "'a': got .* 2, expected 0"),
    "trailing": (raw({"a": item(0, 3)}, b"1234"), "got 4 bytes of data, expected 3"),
    "trailing, empty": (raw({}, b"1"), "got 1 bytes of data, expected 0"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2) * 9, "nothing is ever unpickled"),
}


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_tensors(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


def test_a_header_of_absurd_length_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((1 << 30).to_bytes(8, "little") + b"{")
    os.truncate(path, 1 << 31)  # a sparse file: it takes no space
    with pytest.raises(CheckpointError, match="should have 1073741824 bytes, at most 100000000"):
        open_tensors(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": random_bits("F16", (3, 4)), "b": random_bits("I8", (5,))}, align=8)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_tensors(path)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.safetensors"
    write(path, {"a": random_bits("F16", (3, 4)), "b": random_bits("I8", (5,))}, align=8)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        entries = open_tensors(path)
    except CheckpointError:
        return
    for entry in entries.values():  # a name may differ; every byte still belongs to one tensor
        assert entry.read().nbytes == entry.nbytes


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": random_bits("F16", (30, 4))})
    entry = open_tensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="got 239 bytes, expected 240"):
        entry.read()
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        entry.read()


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl"])
def test_a_pickle_is_refused_by_its_suffix_and_never_opened(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(CheckpointError, match="nothing is ever unpickled") as caught:
        open_tensors(tmp_path / f"pytorch_model.{suffix}")
    assert "safetensors" in caught.value.fix


def test_a_pickle_under_another_name_runs_nothing(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "planted"),)

    for name, protocol in (("model.safetensors", 2), ("b.safetensors", 4), ("a.bin", 4)):
        (tmp_path / name).write_bytes(pickle.dumps([Planted()] * 9, protocol))
        with pytest.raises(CheckpointError, match="nothing is ever unpickled"):
            open_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match="nothing is ever unpickled"):
        open_tensor_folder(tmp_path)
    assert not (tmp_path / "planted").exists()


def test_a_torch_archive_under_another_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    with pytest.raises(CheckpointError, match="nothing is ever unpickled"):
        open_tensors(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read"):
        open_tensors(tmp_path / "none.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards and their index: a and b in the first, c in the second."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write(tmp_path / first, {"a": random_bits("F16", (2, 3)), "b": random_bits("F16", (4,))})
    write(tmp_path / second, {"c": random_bits("F32", (5,))})
    write_index(tmp_path, {"a": first, "b": first, "c": second})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def test_shards_open_as_one_set(sharded: Path) -> None:
    entries = open_tensor_folder(sharded)
    assert {name: entry.path.name for name, entry in entries.items()} == weight_map(sharded)
    assert same_bits(entries["c"].read(), random_bits("F32", (5,)))


def test_a_single_file_opens_by_its_name_whatever_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": random_bits("F16", (2, 3))})
    write(tmp_path / "other.safetensors", {"b": random_bits("F16", (2, 3))})
    assert list(open_tensor_folder(tmp_path)) == ["a"]


def drop_shard(folder: Path) -> None:
    next(folder.glob("*-00002-*")).unlink()


def index_more(folder: Path) -> None:
    write_index(folder, weight_map(folder) | {"d": weight_map(folder)["c"]})


def index_less(folder: Path) -> None:
    write_index(folder, {k: v for k, v in weight_map(folder).items() if k != "b"})


def index_elsewhere(folder: Path) -> None:
    write_index(folder, weight_map(folder) | {"b": weight_map(folder)["c"]})


def repeat_key(folder: Path) -> None:
    write(next(folder.glob("*-00002-*")), {"a": random_bits("F16", (2, 3)), "c": np.zeros(5)})


def add_single(folder: Path) -> None:
    write(folder / "model.safetensors", {"a": random_bits("F16", (2, 3))})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_shard, "1 of the 2 shards .* missing: model-00002-of-00002"),
        (index_more, "index.json says that 'd' is in model-00002.*it is not"),
        (index_less, "'b' is in model-00001-of-00002.safetensors, .* says nowhere"),
        (index_elsewhere, "'b' is in model-00001.* says model-00002"),
        (repeat_key, "'a' is in model-00001.* and in model-00002"),
        (add_single, "holds both"),
        (lambda f: write_index(f, ["a"]), "weight_map does not map"),
        (lambda f: write_index(f, {"a": "../model.safetensors"}), "weight_map does not map"),
        (lambda f: (f / INDEX).write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / INDEX).write_text("version https://git-lfs.github.com/spec/v1"), "LFS"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_refused(
    sharded: Path, fault: Callable[[Path], object], message: str
) -> None:
    fault(sharded)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_tensor_folder(sharded)
    assert str(sharded) in caught.value.problem
    assert caught.value.fix


def test_a_folder_of_pickles_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin is a pickled torch file"):
        open_tensor_folder(tmp_path)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_weights_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither .* \(found nothing\)"):
        open_tensor_folder(tmp_path / name)
