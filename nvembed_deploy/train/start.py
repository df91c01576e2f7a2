"""This file owns what a run starts from: a decoder, a released model or an earlier checkpoint."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from nvembed_deploy.checkpoint import (
    DESCRIPTION,
    Checkpoint,
    is_released,
    open_base,
    open_checkpoint,
    place_of,
    write_tokenizer,
)
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.recipe import ModelSection, TrainRecipe
from nvembed_deploy.train.room import Room


def open_start(recipe: TrainRecipe, scratch: Path) -> Checkpoint:
    """Open the checkpoint to begin from; a plain decoder gets a fresh pooler, under `scratch`.

    Raises:
        CheckpointError: it cannot be read, or the recipe names it by the wrong key.
    """
    if recipe.model.checkpoint is not None:
        return open_checkpoint(recipe.model.checkpoint)
    base = _base(recipe.model)
    if is_released(base):
        return open_checkpoint(base)
    backbone = open_base(base)[0].backbone
    spec = recipe.model.pooler_spec(backbone)
    parts = Parts(
        base, pooler_spec=spec, causal=recipe.model.mask == "causal", name=recipe.model.name
    )
    assemble_checkpoint(parts, scratch / "start", seed=recipe.run.seed)
    return open_checkpoint(scratch / "start")


def open_room(recipe: TrainRecipe) -> Room:
    """Open what tells how long an instruction may be. Of the model only the tokenizer is read.

    Raises:
        CheckpointError, ArtifactError: it cannot be read.
    """
    if recipe.model.checkpoint is not None:
        checkpoint = open_checkpoint(recipe.model.checkpoint)
    else:
        base = _base(recipe.model)
        spec, tensors, path = open_base(base)
        checkpoint = Checkpoint(base, spec, tensors, {}, adapter=None, tokenizer=path)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = load_tokenizer(checkpoint, Path(scratch))
        digest = hashlib.sha256((Path(scratch) / "tokenizer.json").read_bytes()).hexdigest()
    return Room(tokenizer, recipe.text.max_tokens, digest)


def load_tokenizer(checkpoint: Checkpoint, scratch: Path) -> Tokenizer:
    """Write a checkpoint's tokenizer.json under `scratch` and open it."""
    path, spec = scratch / "tokenizer.json", checkpoint.spec
    write_tokenizer(checkpoint, path)
    return Tokenizer.load(path, spec.text, spec.backbone.vocab_size)


def parts_of(checkpoint: Checkpoint, section: ModelSection) -> Parts:
    """Return what the checkpoint that training writes is made of, but for adapter and pooler."""
    base = section.base or _base_of(checkpoint)
    spec = checkpoint.spec
    return Parts(
        base=place_of(Path(base)),
        pooler_spec=spec.pooler,
        causal=spec.backbone.causal,
        name=section.name or (spec.name if section.checkpoint else None),
        prompts=spec.prompts,
        text=spec.text,
        tokenizer=place_of(checkpoint.tokenizer) if section.checkpoint else None,
    )


def _base(section: ModelSection) -> Path:
    """Return `model.base` if it is a decoder or a released model."""
    base = place_of(Path(section.base or ""))
    if not base.exists():
        raise CheckpointError(f"base {base} does not exist", "correct model.base in the recipe")
    if (base / DESCRIPTION).exists():
        raise CheckpointError(f"base {base} is a checkpoint", "name it as model.checkpoint")
    if is_released(base) and section.shape_keys:
        raise CheckpointError(
            f"base {base} is a released model: {', '.join(section.shape_keys)} are its own",
            "remove these keys of [model]; its pooler is trained on",
        )
    return base


def _base_of(checkpoint: Checkpoint) -> Path:
    description = checkpoint.path / DESCRIPTION
    if not description.exists():
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is a released model, whose adapter is merged",
            "name it as model.base: a new adapter is put on it, and its pooler trained on",
        )
    named = json.loads(description.read_text(encoding="utf-8"))["base"]
    return place_of(checkpoint.path / named)
