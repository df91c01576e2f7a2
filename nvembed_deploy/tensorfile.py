"""This file owns tensors on disk: opening safetensors files and reading them by tensor or by rows.

It uses plain reads, not memory maps, whose pages would count as resident memory, and no torch.
It knows no tensor names and never unpickles anything.

Source of the layout: the safetensors format (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.config import read_json
from nvembed_deploy.errors import CheckpointError, refuse_lfs_pointer
from nvembed_deploy.tensordtype import DTYPES

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl")
_PICKLE_HEADS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_MIN_SIZE = 10
"""An empty header: its length and two braces."""

_MAX_HEADER = 100_000_000
"""The safetensors library's own limit, in bytes."""

_AGAIN = "copy or download the file again, and compare its size and sha256 with the source's"
_CONVERT = (
    "convert it where you trust it: load it with torch.load(..., weights_only=True), then "
    "safetensors.torch.save_file"
)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file; `dtype` is safetensors' name of its format, `offset` absolute."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self, rows: slice | None = None) -> np.ndarray:
        """Return the tensor, or only `rows` (contiguous) of its first axis, in its stored dtype.

        Raises:
            CheckpointError: the file has gone or become shorter since it was opened.
            ValueError: `rows` has a step, or the tensor no axis.
        """
        shape, offset, nbytes = self.shape, self.offset, self.nbytes
        if rows is not None:
            if not shape:
                raise ValueError(f"{self.name} is a scalar: it has no rows")
            start, stop, step = rows.indices(shape[0])
            if step != 1:
                raise ValueError(f"{self.name}: rows must be contiguous, got {rows}")
            row_bytes = nbytes // max(shape[0], 1)
            shape = (max(stop - start, 0), *shape[1:])
            offset, nbytes = offset + start * row_bytes, shape[0] * row_bytes
        try:
            data = np.fromfile(self.path, np.uint8, nbytes, offset=offset)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if data.nbytes != nbytes:
            raise _damaged(self.path, f"{self.name!r}: got {data.nbytes} bytes, expected {nbytes}")
        return data.view(DTYPES[self.dtype]).reshape(shape)


def open_tensors(path: Path) -> dict[str, TensorEntry]:
    """Read the header of one .safetensors file; no tensor is read.

    Raises:
        CheckpointError: the file is missing, of another kind, cut, or its header is inconsistent.
    """
    path = Path(path)
    header, start = _read_header(path)
    size = path.stat().st_size - start
    header.pop("__metadata__", None)
    entries = [_entry(path, name, item, start) for name, item in header.items()]
    end = start
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != end:
            what = "a hole before it" if entry.offset > end else "an overlap with another tensor"
            raise _damaged(
                path,
                f"{entry.name!r}: got data offset {entry.offset - start}, expected {end - start} "
                f"({what})",
            )
        end += entry.nbytes
        if end - start > size:
            raise _damaged(
                path,
                f"{entry.name!r} ends at byte {end - start} of the data, of which the file has "
                f"{size}: it is cut",
            )
    if end - start != size:
        raise _damaged(path, f"got {size} bytes of data, expected {end - start}: bytes trail it")
    return {entry.name: entry for entry in entries}


def open_tensor_folder(folder: Path) -> dict[str, TensorEntry]:
    """Open a model folder's tensors: the shards its index names, or its single file.

    Raises:
        CheckpointError: no or both layouts are there, a shard is missing, or shards and index
            disagree.
    """
    folder = Path(folder)
    has_index, has_single = (folder / _INDEX).exists(), (folder / _SINGLE).exists()
    if has_index and has_single:
        raise CheckpointError(
            f"{folder} holds both {_INDEX} and {_SINGLE}: which one is the model is not known",
            "remove the one that is not",
        )
    if has_index:
        return _open_shards(folder, folder / _INDEX)
    if has_single:
        return open_tensors(folder / _SINGLE)
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if pickles:
        raise _pickle(folder / pickles[0])
    names = ", ".join(found[:8]) or "nothing"
    raise CheckpointError(
        f"{folder} has neither {_INDEX} nor {_SINGLE} (found {names})",
        "copy the complete model folder",
    )


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {problem}", _AGAIN)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error.strerror or error}", "check the path and its permissions"
    )


def _pickle(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a pickled torch file, expected safetensors; nothing is ever unpickled, because "
        "a pickle can run any code",
        _CONVERT,
    )


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header and where the data starts."""
    if path.suffix in _PICKLES:
        raise _pickle(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(24)
            length = int.from_bytes(head[:8], "little")
            _check_head(path, head, size)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    return header, 8 + length


def _check_head(path: Path, head: bytes, size: int) -> None:
    """Refuse what is no safetensors file by its first bytes: the header starts with a brace."""
    refuse_lfs_pointer(path, head)
    if size < _MIN_SIZE:
        raise _damaged(path, f"got {size} bytes, expected at least {_MIN_SIZE}: it is cut")
    if head[8:9] != b"{":
        if head.startswith((b"PK\3\4", *_PICKLE_HEADS)):
            raise _pickle(path)
        raise _damaged(path, f"it is no safetensors file: got header {head[8:]!r}, expected JSON")
    length, limit = int.from_bytes(head[:8], "little"), min(size - 8, _MAX_HEADER)
    if length > limit:
        raise _damaged(path, f"its header should have {length} bytes, at most {limit} fit: cut")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return values


def _entry(path: Path, name: str, item: Any, start: int) -> TensorEntry:  # noqa: ANN401 - JSON
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not (_counts(shape) and _counts(offsets, length=2)):
        raise _damaged(path, f"{name!r}: got {item}, expected dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name!r} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}",
            "save the checkpoint in float32, float16 or bfloat16",
        )
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise _damaged(
            path,
            f"{name!r}: got {offsets[1] - offsets[0]} bytes, expected {nbytes} for {dtype} {shape}",
        )
    return TensorEntry(name, path, dtype, tuple(shape), start + offsets[0], nbytes)


def _counts(value: Any, *, length: int | None = None) -> bool:  # noqa: ANN401 - JSON
    if not isinstance(value, list) or length not in (None, len(value)):
        return False
    return all(type(n) is int and n >= 0 for n in value)


def _open_shards(folder: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of the {len(shards)} shards in {index.name} are missing: "
            f"{', '.join(missing)}",
            "copy or download them into the folder",
        )
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in open_tensors(folder / shard).items():
            if name in entries:
                other = entries[name].path.name
                raise _disagree(folder, f"{name!r} is in {other} and in {shard}")
            if weight_map.get(name) != shard:
                where = weight_map.get(name, "nowhere")
                raise _disagree(folder, f"{name!r} is in {shard}, {index.name} says {where}")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise _disagree(folder, f"{index.name} says that {name!r} is in {shard}: it is not")
    return entries


def _weight_map(index: Path) -> Mapping[str, str]:
    refuse_lfs_pointer(index, index.read_bytes())
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise _damaged(index, "weight_map does not map tensor names to file names")
    return weight_map


def _disagree(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {problem}", "copy index and shards again, all from the same revision"
    )
