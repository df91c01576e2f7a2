"""This file owns which versions of packages a comparison names: what computes, what measures."""

from __future__ import annotations

from importlib import metadata

import nvembed_deploy

Row = tuple[str, ...]
"""Packages of which any may do: onnxruntime-gpu has the modules of onnxruntime."""

COMPUTING: tuple[Row, ...] = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("tensorrt", "tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    ("tokenizers",),
    ("torch",),
    ("transformers",),
)
"""What turns texts into embeddings."""
MEASURING: tuple[Row, ...] = (("mteb",), ("numpy",))
_NONE = "not installed"


def versions(rows: tuple[Row, ...]) -> dict[str, str]:
    """Return our own version and those that are installed; of a row without any, that it is so."""
    found = {"nvembed-deploy": nvembed_deploy.__version__}
    for row in rows:
        installed = {name: version for name in row if (version := _version(name)) is not None}
        found |= installed or {row[0]: _NONE}
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
