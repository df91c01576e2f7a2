"""This file owns on-disk contract 2, the artifact folder: its names and its checks.

The manifest (`manifest.py`) lists every file with its size and sha256; what is not as listed is
refused. `staging.py` makes the folder appear at once; what is in the graph is `export`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from nvembed_deploy.engine_record import EngineRecord
from nvembed_deploy.errors import ArtifactError, InputError
from nvembed_deploy.manifest import (
    LAYOUT,
    REEXPORT,
    FileRecord,
    Layout,
    Manifest,
    WeightsSize,
    check_parity,
    read_manifest,
)
from nvembed_deploy.staging import names_in, replace_text, staged_folder

__all__ = [
    "LAYOUT",
    "Artifact",
    "FileRecord",
    "Layout",
    "Manifest",
    "WeightsSize",
    "add_file_record",
    "hash_file",
    "is_artifact",
    "open_artifact",
    "read_manifest",
    "record_engine",
    "remedy",
    "staged_artifact",
    "update_parity",
    "write_manifest",
]

Verify = Literal["fast", "full"]
"""How much of an artifact is read before it is used; see `open_artifact`."""
_CHUNK_BYTES = 8 << 20

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called while a file is read: its name, bytes done, bytes in all."""


REQUIRED_FILES = (LAYOUT.graph, LAYOUT.weights, LAYOUT.tokenizer)


@dataclass(frozen=True)
class Artifact:
    """An artifact folder that was opened and is what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX graph."""
        return self.path / LAYOUT.graph

    @property
    def weights(self) -> Path:
        """The graph's weights."""
        return self.path / LAYOUT.weights

    @property
    def tokenizer(self) -> Path:
        """The tokenizer."""
        return self.path / LAYOUT.tokenizer


def is_artifact(path: Path) -> bool:
    """Say whether a folder claims to be an artifact."""
    return (Path(path) / LAYOUT.manifest).is_file()


def open_artifact(
    path: Path, verify: Verify = "fast", *, progress: Progress | None = None
) -> Artifact:
    """Open an artifact and check that it is what it says.

    Args:
        path: the folder.
        verify: "fast" checks the size of every listed file and the sha256 of all but the
            weights and engines, and leaves out engines that are gone, cut short or outside the
            folder, with a warning: the graph is whole, and another can be compiled. "full" reads
            all and refuses those.
        progress: called while files are read.

    Raises:
        ArtifactError: it is no artifact, or a file is missing, changed or outside the folder.
        InputError: `verify` is none of these.
    """
    path = Path(path)
    if verify not in get_args(Verify):
        expected = ", ".join(get_args(Verify))
        raise InputError(f"verify is {verify!r}, expected one of {expected}", "leave it out")
    manifest = read_manifest(path)
    if verify == "fast":
        manifest = _without_lost_engines(path, manifest)
    missing = [name for name in REQUIRED_FILES if name not in manifest.files]
    if missing:
        raise ArtifactError(f"{path / LAYOUT.manifest} does not list {missing}", REEXPORT)
    for name in manifest.files:
        _check_size(path, name, manifest)
    for name in manifest.files:
        if verify == "full" or not _is_large(name):
            _check_hash(path, name, manifest, progress)
    return Artifact(path=path, manifest=manifest)


@contextmanager
def staged_artifact(out_dir: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes the artifact `out_dir` when the block succeeds.

    Raises:
        ArtifactError: `out_dir` cannot be made, or the block wrote no manifest.
    """
    marker = LAYOUT.manifest
    with staged_folder(out_dir, marker=marker, overwrite=overwrite, foreign=_foreign) as stage:
        yield stage
        read_manifest(stage)


def _foreign(folder: Path) -> list[str]:
    """Return the files of an artifact's folder that neither it nor its engines' runtimes wrote."""
    listed = {LAYOUT.manifest, *read_manifest(folder).files}
    own = (f"{LAYOUT.engines}/", f".{LAYOUT.manifest}.")
    return [name for name in names_in(folder) if name not in listed and not name.startswith(own)]


def add_file_record(
    stage_dir: Path, manifest: Manifest, name: str, sha256: str | None = None
) -> Manifest:
    """Return the manifest with `name` listed; its sha256 is computed unless the writer knows it."""
    file = stage_dir / name
    record = FileRecord(bytes=file.stat().st_size, sha256=sha256 or hash_file(file))
    return replace(manifest, files={**manifest.files, name: record})


def write_manifest(stage_dir: Path, manifest: Manifest) -> Manifest:
    """List every file that is not listed yet, write the manifest, and return it as written.

    Raises:
        ArtifactError: a listed file is not in the folder, or of another size.
    """
    for file in sorted(stage_dir.rglob("*")):
        name = file.relative_to(stage_dir).as_posix()
        if file.is_file() and name not in manifest.files and name != LAYOUT.manifest:
            manifest = add_file_record(stage_dir, manifest, name)
    for name in manifest.files:
        _check_size(stage_dir, name, manifest)
    _replace_manifest(stage_dir, manifest)
    return manifest


def update_parity(path: Path, verdict: dict[str, Any]) -> Manifest:
    """Record the parity verdict; the manifest is replaced at once, nothing else is touched.

    The caller holds `sole_writer`, as for `record_engine`.

    Args:
        path: an artifact folder.
        verdict: `passed` (bool) and the numbers behind it.

    Raises:
        ArtifactError: the folder has no readable manifest, or the verdict has no `passed`.
    """
    manifest = read_manifest(path)
    try:
        manifest = replace(manifest, parity=check_parity(verdict))
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}", "pass the parity suite's own verdict") from error
    _replace_manifest(Path(path), manifest)
    return manifest


def record_engine(path: Path, name: str, record: EngineRecord, sha256: str) -> Manifest:
    """Record an engine that was compiled into an artifact; the manifest is replaced at once.

    The caller holds the artifact's lock: two that write one manifest would lose a record.

    Raises:
        ArtifactError: the folder has no readable manifest, or no such file.
    """
    manifest = read_manifest(path)
    manifest = replace(manifest, engines={**manifest.engines, name: record})
    manifest = add_file_record(path, manifest, name, sha256)
    _replace_manifest(path, manifest)
    return manifest


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Return a file's sha256 in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(path.name, done, total)
    return digest.hexdigest()


def _without_lost_engines(folder: Path, manifest: Manifest) -> Manifest:
    """Return what a manifest says of an artifact whose engines may be gone or cut short."""
    files, lost = manifest.files, set[str]()
    for name in sorted(manifest.engines):
        if loss := _loss(folder, name, files.get(name)):
            lost.add(name)
            logger.warning("%s %s; it is used without this engine", folder / name, loss)
    kept = {name: record for name, record in manifest.engines.items() if name not in lost}
    files = {name: record for name, record in files.items() if name not in lost}
    return replace(manifest, engines=kept, files=files)


def _loss(folder: Path, name: str, record: FileRecord | None) -> str | None:
    """Say why an engine cannot be used; None if it can. What lies outside is never opened."""
    file = folder / name
    if _leads_out(file, folder):
        return f"leads to {file.resolve()}, outside the artifact"
    if record is None or not file.is_file() or file.stat().st_size != record.bytes:
        return "is gone or cut short"
    return None


def _leads_out(file: Path, folder: Path) -> bool:
    return not file.resolve().is_relative_to(folder.resolve())


def remedy(folder: Path, name: str, manifest: Manifest) -> str:
    """Say what to do about a file that is not as the manifest says."""
    engine = manifest.engines.get(name)
    command = engine.compile_command(folder) if engine else None
    return f"compile it anew: {command}" if command else REEXPORT


def _check_size(folder: Path, name: str, manifest: Manifest) -> None:
    """Check that a listed file exists inside `folder` and has its size."""
    file, expected = folder / name, manifest.files[name].bytes
    advice = remedy(folder, name, manifest)
    if _leads_out(file, folder):
        raise ArtifactError(
            f"{file} leads to {file.resolve()}, outside the artifact",
            "copy the folder with the files themselves: cp -rL",
        )
    if not file.is_file():
        raise ArtifactError(f"{file} is missing, but the manifest lists it", advice)
    size = file.stat().st_size
    if size != expected:
        raise ArtifactError(f"{file}: got {size} bytes, expected {expected}", advice)


def _is_large(name: str) -> bool:
    """Say whether hashing a file takes as long as reading the model."""
    return name == LAYOUT.weights or name.startswith(f"{LAYOUT.engines}/")


def _check_hash(folder: Path, name: str, manifest: Manifest, progress: Progress | None) -> None:
    got, expected = hash_file(folder / name, progress), manifest.files[name].sha256
    if got != expected:
        raise ArtifactError(
            f"{folder / name} was changed: got sha256 {got}, expected {expected}",
            remedy(folder, name, manifest),
        )


def _replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest so that a reader sees the old one or the new one, never half of one."""
    text = json.dumps(manifest.to_dict(), indent=2, sort_keys=True) + "\n"
    replace_text(folder / LAYOUT.manifest, text)
