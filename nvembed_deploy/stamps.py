"""This file owns telling checkpoints apart without reading them: size and time of each file."""

from __future__ import annotations

from typing import Any

from nvembed_deploy.artifact import hash_file
from nvembed_deploy.checkpoint import DESCRIPTION, Checkpoint


def stamps_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return name, size and time of each file that a checkpoint is of, in its folder or not.

    Not where they lie: a checkpoint that is moved with its base is the same.
    """
    tensors = (*checkpoint.backbone.values(), *checkpoint.pooler.values())
    folders = [checkpoint.path, *([checkpoint.adapter] if checkpoint.adapter else [])]
    files = {tensor.path.resolve() for tensor in tensors} | {checkpoint.tokenizer.resolve()}
    # not what lies in folders of its own: an artifact, a cache of an export
    files |= {file.resolve() for folder in folders for file in folder.iterdir() if file.is_file()}
    found = [(file.name, file.stat()) for file in files]
    description = checkpoint.path / DESCRIPTION
    return {
        "files": sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found),
        "description": hash_file(description) if description.exists() else "",
    }
