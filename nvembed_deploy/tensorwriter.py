"""This file owns the writing of safetensors files, streamed: no tensor needs to be held whole.

The header is written first, so every tensor's place is known before any value is; a thread hashes
and writes while the caller makes the next values.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.tensordtype import DTYPES

_PIECE_BYTES = 8 << 20
_QUEUED_PIECES = 8
"""Together 64 MiB: the most that waits for the disk, whatever the size of a chunk."""


class SafetensorsWriter:
    """Writes one file, tensor after tensor in the declared order; use it in a `with` statement.

    An exception inside the `with` statement removes the file.

    Attributes:
        offsets: absolute byte of each tensor's first value.
        nbytes: size of the finished file.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[tuple[str, str, tuple[int, ...]]],
        metadata: dict[str, str] | None = None,
        align: int = 4096,
    ) -> None:
        """Create the file and write its header.

        Args:
            path: the file to write.
            entries: name, safetensors dtype and shape of each tensor, in writing order.
            metadata: what the header's `__metadata__` says.
            align: the data starts at a multiple of this many bytes (spaces pad the header).

        Raises:
            ArtifactError: the file cannot be created.
            ValueError: a name is repeated or a dtype unknown.
        """
        header, self.offsets, self.nbytes = _layout(entries, metadata, align)
        self._path = Path(path)
        self._pending = {name: (dtype, shape) for name, dtype, shape in entries}
        self._result: tuple[int, str] | None = None
        self._file = _FileThread(self._path)
        self._file.put(np.frombuffer(header, np.uint8))

    def write(self, name: str, chunks: Iterable[np.ndarray]) -> None:
        """Write one tensor, given as consecutive parts that nobody changes afterwards.

        Raises:
            ArtifactError: the file cannot be written (the disk is full).
            ValueError: it is another tensor's turn, or the parts' dtype or size is not as declared.
        """
        turn = next(iter(self._pending), None)
        if name != turn:
            raise ValueError(f"{self._path}: got {name!r}, expected {turn!r}, as declared")
        dtype, shape = self._pending[name]
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        got = 0
        for chunk in chunks:
            got += chunk.nbytes
            if chunk.dtype != DTYPES[dtype]:
                raise ValueError(f"{name!r}: got {chunk.dtype}, expected {DTYPES[dtype]}")
            if got > expected:
                break
            self._file.put(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8))
        if got != expected:
            raise ValueError(f"{name!r}: got {got} bytes, expected {expected} for {dtype} {shape}")
        del self._pending[name]

    def close(self) -> tuple[int, str]:
        """Wait until the file is on the disk; return its size and sha256. A second call repeats it.

        Raises:
            ArtifactError: the file cannot be written.
            ValueError: a declared tensor was not written.
        """
        if self._result is None:
            if self._pending:
                raise ValueError(f"{self._path}: {list(self._pending)[:5]} were not written")
            self._result = self.nbytes, self._file.finish()
        return self._result

    def __enter__(self) -> SafetensorsWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, or remove it if anything went wrong."""
        try:
            if kind is None:
                self.close()
        finally:
            if kind is not None or self._result is None:
                self._file.abandon()
                self._path.unlink(missing_ok=True)


def _layout(
    entries: Sequence[tuple[str, str, tuple[int, ...]]],
    metadata: dict[str, str] | None,
    align: int,
) -> tuple[bytes, dict[str, int], int]:
    """Return the header's bytes (its length included), each tensor's offset and the file's size."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    starts: dict[str, int] = {}
    end = 0
    for name, dtype, shape in entries:
        if name in starts or name == "__metadata__" or dtype not in DTYPES:
            raise ValueError(f"{name!r} ({dtype}) is repeated, reserved or of an unknown dtype")
        starts[name] = end
        end += math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    data = 8 + len(text)
    offsets = {name: data + start for name, start in starts.items()}
    return len(text).to_bytes(8, "little") + text, offsets, data + end


class _FileThread:
    """A file written and hashed by a thread of its own. Its errors surface in the caller."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: OSError | None = None
        self._is_abandoned = False
        self._sha256 = hashlib.sha256()
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(_QUEUED_PIECES)
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, data: np.ndarray) -> None:
        """Queue bytes, in pieces, so that a large chunk does not wait behind another one."""
        for start in range(0, data.size, _PIECE_BYTES):
            self._queue.put(data[start : start + _PIECE_BYTES])
        if self._error is not None:
            raise _unwritable(self._path, self._error) from self._error

    def finish(self) -> str:
        """Write what is queued, sync, close; return the sha256."""
        self._join()
        if self._error is not None:
            raise _unwritable(self._path, self._error) from self._error
        return self._sha256.hexdigest()

    def abandon(self) -> None:
        """Close the file without writing what is queued."""
        self._is_abandoned = True
        self._join()

    def _join(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        with self._file, ThreadPoolExecutor(1, thread_name_prefix="sha256") as self._hasher:
            while (piece := self._queue.get()) is not None:
                # After an error the queue is still emptied: the caller must not block on it.
                if self._error is None and not self._is_abandoned:
                    self._write(piece)
            if self._error is None and not self._is_abandoned:
                self._sync()

    def _write(self, piece: np.ndarray) -> None:
        try:
            hashing = self._hasher.submit(self._sha256.update, piece.data)
            view = piece.data
            while view:
                view = view[self._file.write(view) or 0 :]
            hashing.result()
        except OSError as error:
            self._error = error

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._error = error


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot write {path}: {error.strerror}",
        "free space on its disk, or choose another folder that may be written",
    )
