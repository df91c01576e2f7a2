"""This file owns where an artifact says it comes from: the checkpoint's files, and our tools."""

from __future__ import annotations

from typing import Any

import nvembed_deploy
from nvembed_deploy.artifact import hash_file
from nvembed_deploy.checkpoint import Checkpoint
from nvembed_deploy.installed import installed

_DESCRIPTIONS = ("config.json", "checkpoint.json", "model.safetensors.index.json")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_POOLER = "pooler.safetensors"
_TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "tokenizers", "torch")


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's name, and the sha256 of what describes the checkpoint and was trained.

    Files have the names that `assemble` gives them, also where the checkpoint's description names
    others. The decoder's weights are not read: they would take as long as a copy.
    """
    files = {name: checkpoint.path / name for name in _DESCRIPTIONS}
    if checkpoint.adapter is not None:
        files |= {name: checkpoint.adapter / name for name in _ADAPTER}
    if checkpoint.pooler and checkpoint.pooler is not checkpoint.backbone:
        files[_POOLER] = next(iter(checkpoint.pooler.values())).path
    hashes = {name: hash_file(path) for name, path in files.items() if path.exists()}
    return {"name": checkpoint.spec.name, "sha256": hashes}


def tool_versions() -> dict[str, str]:
    """Return the versions of what wrote the artifact."""
    return {"nvembed-deploy": nvembed_deploy.__version__} | installed(_TOOLS)
