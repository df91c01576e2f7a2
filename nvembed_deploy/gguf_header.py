"""This file owns the header of a GGUF file: its metadata, and where and how each tensor is stored.

It does not know what the metadata mean: `gguf.py` and `gguf_tokenizer.py` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from nvembed_deploy.errors import (
    LFS_POINTER,
    CheckpointError,
    MissingPackageError,
    refuse_lfs_pointer,
)

T = TypeVar("T")
_MOST_VALUES = 4_000_000
"""In a header: twice what 262,144 tokens, their scores, types and merges are."""
_MAGIC = b"GGUF"
_AGAIN = "copy or download it again, and compare its size and sha256 with the source's"
CONVERT_AGAIN = "convert the model again with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the file names and stores it: `shape` is rows first, `offset` absolute."""

    name: str
    quantization: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says before its tensors' values."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of the metadata, or `default` where the key is missing.

        Raises:
            CheckpointError: it is missing without a default, or of another kind.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: the key {key} is missing", CONVERT_AGAIN)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.path}: {key} is {value!r:.80}, expected {kind.__name__}", CONVERT_AGAIN
            )
        return value

    def get_all(self, key: str, kind: type[T]) -> list[T]:
        """Return a list of the metadata, whose items are all of one kind.

        Raises:
            CheckpointError: it is missing, no list, or an item is of another kind.
        """
        values: list[T] = self.get(key, list)
        wrong = [value for value in values if type(value) is not kind]
        if wrong:
            raise CheckpointError(
                f"{self.path}: {key} holds {wrong[0]!r:.80}, expected only {kind.__name__}",
                CONVERT_AGAIN,
            )
        return values


def import_gguf() -> ModuleType:
    """Return the `gguf` package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError(
            f"reading GGUF files needs the gguf package: {error}",
            "pip install 'nvembed-deploy[export]'",
        ) from error
    return gguf


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file; a file that has not changed is parsed once per process.

    Raises:
        CheckpointError: the file is missing, damaged, or one of several parts.
        MissingPackageError: the gguf package is not installed.
    """
    path = Path(path)
    try:
        stat = path.stat()
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error
    _check_head(path, head)
    return _read(path, (stat.st_size, stat.st_mtime_ns))


def _check_head(path: Path, head: bytes) -> None:
    """Refuse what is no GGUF file by its first bytes."""
    refuse_lfs_pointer(path, head)
    if not head.startswith(_MAGIC):
        raise CheckpointError(
            f"{path} is no GGUF file: it starts with {head[:4]!r}, expected {_MAGIC!r}", _AGAIN
        )


@lru_cache(maxsize=4)
def _read(path: Path, _stamp: tuple[int, int]) -> GGUFHeader:
    """Parse with the gguf package: 2 s for 50,000 tokens, therefore cached."""
    try:
        reader = _reader_class()(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = tuple(
            StoredTensor(
                name=tensor.name,
                quantization=int(tensor.tensor_type),
                shape=tuple(int(n) for n in reversed(tensor.shape)),
                offset=int(tensor.data_offset),
                nbytes=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        )
    # The reader checks little: a wrong byte surfaces as whatever Python or numpy makes of it.
    except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete GGUF file, or newer than the gguf package: {error}",
            f"{_AGAIN}; if they agree, pip install --upgrade gguf",
        ) from error
    if reader.byte_order != "I":
        raise CheckpointError(f"{path} is big-endian, expected little-endian", CONVERT_AGAIN)
    if metadata.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{path} is one of {metadata['split.count']} parts, expected one file",
            "merge the parts: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )
    return GGUFHeader(path, metadata, tensors)


def _reader_class() -> Any:  # noqa: ANN401 - gguf is not typed
    class Reader(import_gguf().GGUFReader):  # type: ignore[misc]
        """The gguf package's reader, which by itself takes nothing for what the file lacks.

        So a wrong length would have it gather values, none of them there, until memory is full.
        """

        num_read = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, **order: Any) -> Any:  # noqa: ANN401
            values = super()._get(offset, dtype, count, **order)
            self.num_read += 1
            if self.num_read > _MOST_VALUES:
                raise ValueError(f"its header has more than {_MOST_VALUES} values")
            if values.size != count:
                raise ValueError(f"got {values.size} values at byte {offset}, expected {count}")
            return values

    return Reader
