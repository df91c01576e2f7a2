"""This file owns where an artifact says it comes from: the checkpoint's files, and our tools."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import nvembed_deploy
from nvembed_deploy.artifact import hash_file
from nvembed_deploy.checkpoint import Checkpoint

_POOLER = "pooler.safetensors"
_TOOLS = ("nvembed-deploy", "numpy", "onnx", "onnx-ir", "onnxruntime", "tokenizers", "torch")


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's name, and the sha256 of what describes the checkpoint and was trained.

    The decoder's weights are not read: they would take as long as a copy.
    """
    names = ("config.json", "checkpoint.json", "model.safetensors.index.json", _POOLER)
    files = [checkpoint.path / name for name in names if (checkpoint.path / name).exists()]
    if checkpoint.adapter is not None:
        files.append(checkpoint.adapter / "adapter_model.safetensors")
    return {"name": checkpoint.spec.name, "sha256": {f.name: hash_file(f) for f in files}}


def tool_versions() -> dict[str, str]:
    """Return the versions of what wrote the artifact."""
    versions = {"nvembed-deploy": nvembed_deploy.__version__}
    for name in _TOOLS[1:]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
