"""This file owns embeddings on disk: computed chunk by chunk, kept whatever ends the run.

Rows are only ever appended, in the order of the texts, so what a killed run leaves is the longest
run of whole rows in the file. The file's name says of which texts, teacher and width it is.
Legend: N texts, D hidden.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.artifact import is_artifact
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.stamps import stamps_of
from nvembed_deploy.train.data.lock import hold

_FLOAT_BYTES = 4


class Teacher(Protocol):
    """What turns texts into rows of unit length; an `Encoder` is one."""

    def encode(
        self, inputs: Sequence[str], *, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """Return [N, D] in the order of the inputs."""
        ...


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of embeddings of one teacher."""

    folder: Path
    teacher: Teacher
    teacher_id: str
    """Changes with whatever changes the rows: the weights, the limit of tokens."""
    chunk_texts: int = 1024

    def embed(
        self,
        texts: Sequence[str],
        *,
        instruction: str = "",
        advance: Callable[[int], None] = lambda _: None,
    ) -> NDArray[np.float32]:
        """Return [N, D] as a read-only view of the file; only missing rows are computed.

        Args:
            texts: at least one.
            instruction: the task; empty for passages.
            advance: called with the number of texts that are done since the last call.

        Raises:
            InputError: another run writes the same embeddings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        key = _key(self.teacher_id, instruction, texts)
        lock = self.folder / f"{key}.lock"
        with lock.open("w") as held:
            hold(held, lock)
            path, done = self._begun(key)
            advance(min(done, len(texts)))
            while path is None or done < len(texts):
                chunk = texts[done : done + self.chunk_texts]
                rows_ND = self.teacher.encode(chunk, instruction=instruction or None)
                path = self.folder / f"{key}-{rows_ND.shape[1]}.f32"
                with path.open("ab") as file:
                    _append(file, rows_ND)
                done += len(chunk)
                advance(len(chunk))
        return np.memmap(path, np.float32, "r", shape=(len(texts), _width(path)))

    def _begun(self, key: str) -> tuple[Path | None, int]:
        """Return the file that is there and its whole rows; half a row at its end is cut off."""
        for path in self.folder.glob(f"{key}-*.f32"):
            row_bytes = _width(path) * _FLOAT_BYTES
            done, rest = divmod(path.stat().st_size, row_bytes)
            if rest:
                os.truncate(path, done * row_bytes)
            return path, done
        return None, 0


def _append(file: IO[bytes], rows_ND: NDArray[np.float32]) -> None:
    file.write(np.ascontiguousarray(rows_ND, np.float32).tobytes())
    file.flush()
    os.fsync(file.fileno())


def _width(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _key(teacher_id: str, instruction: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in (teacher_id, instruction, *texts):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def folder_id(folder: Path) -> str:
    """Return a text that changes with the names, sizes and times of a teacher's files.

    Those of a checkpoint's base count too, wherever they lie.

    Args:
        folder: an artifact or a checkpoint.

    Raises:
        CheckpointError: it is no artifact, and cannot be used as a checkpoint.
    """
    if not is_artifact(folder):
        return json.dumps(stamps_of(open_checkpoint(folder)))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [str(folder.resolve())]
    for path in files:
        stat = path.stat()
        parts.append(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(parts)
