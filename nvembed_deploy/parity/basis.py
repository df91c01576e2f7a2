"""This file owns what a verdict rests on: which reference and which tasks, by hash, no paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import LAYOUT, open_artifact
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export.provenance import source_of
from nvembed_deploy.manifest import Manifest
from nvembed_deploy.parity.suite import LocalTask
from nvembed_deploy.stamps import stamps_of


@dataclass(frozen=True)
class Basis:
    """The reference and the tasks of a verdict."""

    reference: dict[str, Any]
    suite: dict[str, Any]
    notes: list[str]
    """What a reader of the verdict has to know; empty if nothing."""


def manifest_of(path: Path) -> Manifest | None:
    """Return an artifact's manifest; None for a checkpoint."""
    return open_artifact(path).manifest if (path / LAYOUT.manifest).exists() else None


def basis_of(
    reference: Path, suite: str, local: Sequence[LocalTask], revisions: Mapping[str, str]
) -> Basis:
    """Return what identifies a reference and the tasks that were run.

    Args:
        reference: an artifact or a checkpoint.
        suite: what the local tasks' suite is called.
        local: those tasks.
        revisions: of the data of mteb's own tasks, by name.
    """
    facts: dict[str, Any] = {}
    if local:
        facts |= {"name": suite, "sha256": _digest({task.name: task.sha256 for task in local})}
    if revisions:
        facts["mteb"] = dict(revisions)
    note = quantized_note(reference)
    return Basis(reference_facts(reference), facts, [note] if note else [])


def reference_facts(path: Path) -> dict[str, Any]:
    """Return a reference's name, kind, and the sha256 of its files.

    Of a checkpoint they are those that an artifact's manifest has as its `source`.
    """
    manifest = manifest_of(path)
    name = {"name": path.resolve().name}
    if manifest is None:
        return name | {"kind": "checkpoint", "sha256": source_of(open_checkpoint(path))["sha256"]}
    return name | {"kind": "artifact", "linears": manifest.linears, "sha256": _hashes(manifest)}


def identity_of(path: Path) -> dict[str, Any]:
    """Return what tells whether an artifact or a checkpoint is still the one that it was, by file.

    Of an artifact the sha256, but not of engines, which may be compiled meanwhile; of a checkpoint
    size and time.
    """
    manifest = manifest_of(path)
    if manifest is not None:
        return _hashes(manifest)
    return stamps_of(open_checkpoint(path))


def check_unchanged(path: Path, measured: Mapping[str, Any]) -> None:
    """Refuse to say of one model what was measured of another that lay in the same place.

    Args:
        path: an artifact or a checkpoint.
        measured: its `identity_of` before it was measured.

    Raises:
        ArtifactError: it was replaced or changed since.
    """
    found = identity_of(path)
    changed = sorted(n for n in found.keys() | measured if found.get(n) != measured.get(n))
    if changed:
        raise ArtifactError(
            f"{path} was replaced while it was measured: {', '.join(changed)} differ",
            "measure it again, and let nothing write it meanwhile",
        )


def _hashes(manifest: Manifest) -> dict[str, str]:
    return {n: record.sha256 for n, record in manifest.files.items() if n not in manifest.engines}


def quantized_note(reference: Path) -> str:
    """Return what is to be said of a reference that has lost something itself; else nothing."""
    manifest = manifest_of(reference)
    if manifest is None or not manifest.is_quantized:
        return ""
    formats = ", ".join(f"{count} {name}" for name, count in manifest.linears.items())
    return (
        f"the reference is quantised itself (linears: {formats}): what it lost is not in this "
        "verdict"
    )


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
