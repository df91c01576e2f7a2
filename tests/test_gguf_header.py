"""Tests of gguf_header.py: a GGUF header is read as it was written, or refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed_deploy import gguf_header
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.gguf_header import GGUFHeader, read_header
from tests.tensor_data import write_gguf

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "an.integer": 7,
    "a.number": 0.5,
    "a.switch": True,
    "some.words": ["a", "é", "\U0001f600"],
    "some.numbers": [1.0, -2.0],
}
TENSORS = {
    "matrix": np.arange(128, dtype=np.float32).reshape(2, 64) / 64,
    "vector": np.arange(5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", METADATA, TENSORS, "Q8_0")


def refusal(path: Path, message: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix
    return caught.value


def test_the_metadata_are_what_was_written(path: Path) -> None:
    header = read_header(path)
    assert METADATA.items() <= header.metadata.items()


def test_tensors_lie_where_the_header_says(path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in read_header(path).tensors}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: array.shape for name, array in TENSORS.items()
    }
    content = path.read_bytes()
    for name, array in TENSORS.items():
        tensor = tensors[name]
        kind = gguf.GGMLQuantizationType(tensor.quantization)
        stored = content[tensor.offset : tensor.offset + tensor.nbytes]
        assert stored == gguf.quants.quantize(array, kind).tobytes()
    assert tensors["matrix"].quantization == gguf.GGMLQuantizationType.Q8_0
    assert tensors["vector"].quantization == gguf.GGMLQuantizationType.F32


def test_a_file_is_parsed_again_only_when_it_has_changed(path: Path) -> None:
    first = read_header(path)
    assert read_header(path) is first
    write_gguf(path, METADATA | {"an.integer": 8, "another": 1})
    assert read_header(path).get("an.integer", int) == 8


def test_a_value_of_another_kind_and_a_missing_key_are_named(path: Path) -> None:
    header = read_header(path)
    assert header.get("an.integer", int) == 7
    assert header.get("no.such", int, 3) == 3
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: an\.integer is 7, expected str"):
        header.get("an.integer", str)
    with pytest.raises(CheckpointError, match=r"a\.switch is True, expected int"):
        header.get("a.switch", int)
    with pytest.raises(CheckpointError, match=r"the key no\.such is missing"):
        header.get("no.such", int)


def test_an_item_of_another_kind_is_named(path: Path) -> None:
    header = read_header(path)
    assert header.get_all("some.words", str) == METADATA["some.words"]
    with pytest.raises(CheckpointError, match=r"some\.numbers holds 1\.0, expected only str"):
        header.get_all("some.numbers", str)
    mixed = GGUFHeader(path, {"mixed": ["a", 1]}, ())
    with pytest.raises(CheckpointError, match="mixed holds 1, expected only str"):
        mixed.get_all("mixed", str)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refusal(tmp_path / "none.gguf", "cannot be read: No such file")


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    refusal(tmp_path, "cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file: it starts with b''"),
        (b"GGU", "is no GGUF file"),
        (b"GGML" * 20, "starts with b'GGML', expected b'GGUF'"),
        (b"<!DOCTYPE html><html>" * 9, "starts with b'<!DO'"),
        (b"PK\3\4" * 20, "is no GGUF file"),
        (b"GGUF", "not a complete GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "not a complete GGUF file.*version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "not a complete GGUF file"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    refusal(path, message)


def test_an_lfs_pointer_is_refused_with_the_command_that_fetches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(path, "is a git-LFS pointer").fix


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    content = path.read_bytes()
    last = max(tensor.offset + tensor.nbytes for tensor in read_header(path).tensors)
    for length in range(last):
        path.write_bytes(content[:length])
        refusal(path, "is no GGUF file" if length < 4 else "not a complete GGUF file")


@pytest.mark.parametrize("last", ["words", ["some", "words"], [1, 2], 2.5, True])
def test_a_file_without_tensors_cut_anywhere_is_refused(path: Path, last: object) -> None:
    write_gguf(path, {"general.architecture": "llama", "last": last})
    content = path.read_bytes().rstrip(b"\0")
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path, "GGUF file")


def test_a_length_that_the_file_has_no_room_for_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    content = write_gguf(path, METADATA).read_bytes()
    for kind, length in ((6, 2), (8, 3)):  # some.numbers, some.words
        written = struct.pack("<IQ", kind, length)
        assert content.count(written) == 1
        path.write_bytes(content.replace(written, struct.pack("<IQ", kind, 1 << 60)))
        refusal(path, "not a complete GGUF file")


def test_lists_in_lists_without_end_are_refused(tmp_path: Path) -> None:
    deep = b"".join(struct.pack("<IQ", 9, 1) for _ in range(2000))
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9)
    (tmp_path / "a.gguf").write_bytes(head + deep)
    refusal(tmp_path / "a.gguf", "not a complete GGUF file")


def test_a_header_of_more_values_than_any_model_has_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "_MOST_VALUES", 20)
    refusal(path, "its header has more than 20 values")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 500), value=st.integers(0, 255))
def test_any_byte_may_be_wrong(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.gguf"
    content = bytearray(write_gguf(path, METADATA, TENSORS, "Q8_0").read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    for tensor in header.tensors:  # a name may differ; every byte still lies in the file
        assert tensor.offset + tensor.nbytes <= len(content)


def test_a_tensor_type_the_gguf_package_does_not_know_is_named(path: Path) -> None:
    content = path.read_bytes()
    known = b"vector" + struct.pack("<IQI", 1, 5, gguf.GGMLQuantizationType.F32)
    assert content.count(known) == 1
    path.write_bytes(content.replace(known, known[:-4] + struct.pack("<I", 999)))
    assert "upgrade gguf" in refusal(path, r"999\)? is not a valid GGMLQuantizationType").fix


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, endianess=gguf.GGUFEndian.BIG)
    refusal(path, "is big-endian")


def test_one_of_several_parts_is_refused_with_the_command_that_merges_them(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert read_header(write_gguf(path, METADATA | {"split.count": 1})).tensors == ()
    write_gguf(path, METADATA | {"split.count": 3})
    assert "--merge" in refusal(path, "is one of 3 parts").fix
