"""This file owns where a verdict goes: report.json, report.html, and the artifact's manifest."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import LAYOUT, hash_file, is_artifact, update_parity
from nvembed_deploy.artifact_lock import sole_writer
from nvembed_deploy.parity.basis import check_unchanged, manifest_of, reference_facts
from nvembed_deploy.parity.report_html import render
from nvembed_deploy.parity.side import Side
from nvembed_deploy.parity.verdict import Verdict, finite
from nvembed_deploy.parity.versions import COMPUTING, MEASURING, versions
from nvembed_deploy.staging import replace_text


def record(artifact: Path, summary: dict[str, Any], measured: Mapping[str, Any]) -> bool:
    """Write a verdict into an artifact's manifest; False for a checkpoint, which has none.

    Args:
        artifact: what was measured.
        summary: the verdict's.
        measured: the artifact's `identity_of` before it was measured.

    Raises:
        ArtifactError: another artifact lies there now.
    """
    if not is_artifact(artifact):
        return False
    with sole_writer(artifact):
        check_unchanged(artifact, measured)
        update_parity(artifact, summary)
    return True


def write_report(
    out: Path, verdict: Verdict, candidate: Side, reference: Side, seconds: float
) -> None:
    """Write report.json for machines and report.html for people."""
    report = asdict(verdict) | {
        "candidate": _side(candidate),
        "reference": _side(reference),
        "environment": _environment(),
        "seconds": round(seconds, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("report.json", json.dumps(finite(report), indent=2, allow_nan=False) + "\n"),
        ("report.html", render(verdict, report)),
    ):
        replace_text(out / name, content)


def _side(side: Side) -> dict[str, Any]:
    manifest = manifest_of(side.path)
    known: dict[str, Any] = {
        "name": side.path.resolve().name,
        "runtime": side.opened_by,
        "device": side.device or "auto",
        "dtype": side.dtype,
    }
    if manifest is None:
        return known | reference_facts(side.path)
    return known | {
        "kind": "artifact",
        "recipe": manifest.recipe,
        "linears": manifest.linears,
        "manifest_sha256": hash_file(side.path / LAYOUT.manifest),
        "sha256": {name: found.sha256 for name, found in manifest.files.items()},
    }


def _environment() -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "date": now,
        "python": platform.python_version(),
        "machine": platform.machine(),
    } | versions(COMPUTING + MEASURING)
