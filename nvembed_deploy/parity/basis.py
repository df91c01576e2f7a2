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
from nvembed_deploy.export.provenance import source_of
from nvembed_deploy.manifest import Manifest
from nvembed_deploy.parity.suite import LocalTask


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
    files = {n: record.sha256 for n, record in manifest.files.items() if n not in manifest.engines}
    return name | {"kind": "artifact", "linears": manifest.linears, "sha256": files}


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
