"""This file owns which versions of packages a comparison names: what computes, what measures."""

from __future__ import annotations

import nvembed_deploy
from nvembed_deploy.installed import installed

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
        found |= installed(row) or {row[0]: _NONE}
    return found
