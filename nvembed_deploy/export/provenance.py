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
_BASE_CONFIG, _TOKENIZER = "base/config.json", "tokenizer.json"
NAMED_LATER = (_BASE_CONFIG, _TOKENIZER)
"""What the sources of older artifacts do not name."""
_GGUF = ".gguf"
_TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "tokenizers", "torch")


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's name, and the sha256 of what describes the checkpoint and was trained.

    Files have the names that `assemble` gives them, also where the checkpoint's description names
    others. The decoder's weights are not read: they would take as long as a copy.
    So are those of a GGUF file, and what it says of sizes and tokens with them.
    """
    files = {name: checkpoint.path / name for name in _DESCRIPTIONS}
    decoder = next(iter(checkpoint.backbone.values())).path
    is_elsewhere = decoder.parent.resolve() != checkpoint.path.resolve()
    if is_elsewhere and decoder.suffix != _GGUF:
        files[_BASE_CONFIG] = decoder.parent / "config.json"
    if checkpoint.tokenizer.suffix != _GGUF:
        files[_TOKENIZER] = checkpoint.tokenizer
    if checkpoint.adapter is not None:
        files |= {name: checkpoint.adapter / name for name in _ADAPTER}
    if checkpoint.pooler and checkpoint.pooler is not checkpoint.backbone:
        files[_POOLER] = next(iter(checkpoint.pooler.values())).path
    hashes = {name: hash_file(path) for name, path in files.items() if path.exists()}
    return {"name": checkpoint.spec.name, "sha256": hashes}


def tool_versions() -> dict[str, str]:
    """Return the versions of what wrote the artifact."""
    return {"nvembed-deploy": nvembed_deploy.__version__} | installed(_TOOLS)
