"""This file owns the cache of rounded blocks: a calibration that was killed goes on from it.

A cache is a folder for each export. Of block N it holds `block-N.safetensors`, the codes, scales
and bases of its linears, and `block-N.json`, what was seen of them, which is written last: without
it the block was not finished. `states-N.safetensors` are the texts' states after the last of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import nvembed_deploy
from nvembed_deploy import filelock
from nvembed_deploy.artifact import hash_file
from nvembed_deploy.errors import ArtifactError, CheckpointError
from nvembed_deploy.export.calibration_record import LinearRange
from nvembed_deploy.export.calibration_texts import BUILT_IN
from nvembed_deploy.export.provenance import tool_versions
from nvembed_deploy.export.quantized import Quantized
from nvembed_deploy.staging import replace_text
from nvembed_deploy.stamps import stamps_of
from nvembed_deploy.tensordtype import DTYPES
from nvembed_deploy.tensorfile import TensorEntry, open_tensors
from nvembed_deploy.tensorwriter import SafetensorsWriter

if TYPE_CHECKING:
    from nvembed_deploy.export.plan import Export

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CODES, _SCALE, _BASIS = ".codes", ".scale", ".basis"


@dataclass(frozen=True)
class RoundedBlock:
    """What rounding made of a block's linears, and what was seen of all of them, by their names."""

    linears: dict[str, Quantized]
    ranges: dict[str, LinearRange]


class BlockCache:
    """The finished blocks of one calibration, in the order of the model."""

    def __init__(self, folder: Path) -> None:
        """Take a folder that nobody else writes."""
        self.folder = folder
        self.count = 0
        while self._facts(self.count).exists():
            self.count += 1

    def load(self, index: int) -> RoundedBlock:
        """Return a finished block.

        Raises:
            ArtifactError: its files are damaged.
        """
        tensors = _open(self._block(index))
        try:
            found = json.loads(self._facts(index).read_text(encoding="utf-8"))
            ranges = {name: LinearRange(**values) for name, values in found["ranges"].items()}
            linears = {name: _quantized(name, tensors, ranges[name]) for name in found["linears"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(self._facts(index), str(error)) from error
        return RoundedBlock(linears, ranges)

    def states(self) -> list[np.ndarray]:
        """Return the texts' states after the last finished layer, float32 [B, S, D] of each batch.

        Raises:
            ArtifactError: their file is damaged.
        """
        return load_states(self._states(self.count - 1))

    def add(self, block: RoundedBlock, states: Sequence[np.ndarray]) -> None:
        """Keep the next block, and the states after it (none after the last): on disk on return.

        Raises:
            ArtifactError: they cannot be written.
        """
        index = self.count
        _write(self._block(index), _tensors_of(block.linears))
        save_states(self._states(index), states)
        ranges = {name: found._asdict() for name, found in block.ranges.items()}
        facts = {"linears": list(block.linears), "ranges": ranges}
        replace_text(self._facts(index), json.dumps(facts))
        self.count += 1
        if index:
            self._states(index - 1).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the cache: what it was for is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _facts(self, index: int) -> Path:
        return self.folder / f"block-{index}.json"

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index}.safetensors"

    def _states(self, index: int) -> Path:
        return self.folder / f"states-{index}.safetensors"


def save_states(path: Path, states: Sequence[np.ndarray]) -> None:
    """Write the texts' states, [B, S, D] of each batch.

    Raises:
        ArtifactError: they cannot be written.
    """
    _write(path, {str(place): state for place, state in enumerate(states)})


def load_states(path: Path) -> list[np.ndarray]:
    """Return what `save_states` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    return [entry.read() for entry in _open(path).values()]


@contextmanager
def open_cache(export: Export) -> Iterator[BlockCache | None]:
    """Yield the cache of an export, held against others; None where its recipe names no folder.

    Raises:
        ArtifactError: it cannot be made, or another export holds it.
    """
    folder = _folder_of(export)
    if folder is None:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ArtifactError(
            f"cache {folder} cannot be made: {error.strerror}", "name a folder that may be written"
        ) from error
    try:
        _hold(handle, folder)
        yield BlockCache(folder)
    finally:
        os.close(handle)


def _folder_of(export: Export) -> Path | None:
    """Return a folder whose name is of all that decides how weights are rounded."""
    recipe = export.recipe
    if recipe.cache is None:
        return None
    texts = hash_file(Path(recipe.calibration) if recipe.calibration else BUILT_IN)
    facts = [stamps_of(export.checkpoint), recipe.to_dict(), texts, tool_versions(), _code()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(recipe.cache) / f"{export.checkpoint.path.resolve().name}-{digest[:16]}"


def _code() -> str:
    """Return a digest of this package's code, which changes between versions too."""
    digest = hashlib.sha256()
    for path in sorted(Path(nvembed_deploy.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _hold(handle: int, folder: Path) -> None:
    try:
        filelock.lock(handle)
    except BlockingIOError:
        raise ArtifactError(
            f"cache {folder} is in use: another run makes the same export",
            "wait for it, or name another folder",
        ) from None


def _tensors_of(linears: Mapping[str, Quantized]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, linear in linears.items():
        tensors |= {name + _CODES: linear.codes_OI, name + _SCALE: linear.scale_OG}
        if linear.basis_IK is not None:
            tensors[name + _BASIS] = linear.basis_IK
    return tensors


def _quantized(name: str, tensors: Mapping[str, TensorEntry], found: LinearRange) -> Quantized:
    basis = tensors.get(name + _BASIS)
    codes, scale = tensors[name + _CODES].read(), tensors[name + _SCALE].read()
    return Quantized(codes, scale, found.scale, None if basis is None else basis.read())


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    entries = [(name, _DTYPE_NAMES[t.dtype], t.shape) for name, t in tensors.items()]
    with SafetensorsWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, [tensor])


def _open(path: Path) -> dict[str, TensorEntry]:
    try:
        return open_tensors(path)
    except CheckpointError as error:
        raise _damaged(path, error.problem) from error


def _damaged(path: Path, problem: str) -> ArtifactError:
    return ArtifactError(
        f"the cache of rounded blocks is damaged: {path}: {problem}", f"remove {path.parent}"
    )
