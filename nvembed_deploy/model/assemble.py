"""This file owns making a checkpoint folder from parts: a base decoder, an adapter, a pooler.

Without a trained pooler a fresh one is written: it begins as the plain mean (its two output
projections are small), which is where training should begin and what an untrained model can do.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.checkpoint import (
    DESCRIPTION,
    SCHEMA_VERSION,
    Checkpoint,
    foreign_files,
    open_base,
    open_checkpoint,
    place_of,
    write_tokenizer,
)
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.names import POOLER, our_name, pooler_shapes, released_name
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, Pooling, TextSpec
from nvembed_deploy.staging import refuse_inside, staged_folder
from nvembed_deploy.tensorfile import open_tensors
from nvembed_deploy.tensorwriter import SafetensorsWriter

_FRESH_OUTPUT = 1e-3
"""Standard deviation of a fresh pooler's output projections, relative to 1/sqrt(inputs)."""

_OUTPUTS = ("pooler.output.weight", "pooler.feed_down.weight")


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is made of. Without `pooler` a fresh one of `pooler_spec` is written."""

    base: Path
    adapter: Path | None = None
    pooler: Path | None = None
    pooler_spec: PoolerSpec = field(default_factory=PoolerSpec)
    causal: bool = False
    name: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    text: TextSpec | None = None
    """The text rules; the base's if left out."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a GGUF file that holds one; the base's if left out."""


def assemble_checkpoint(
    parts: Parts, out: Path, *, copy_base: bool = False, overwrite: bool = False, seed: int = 0
) -> ModelSpec:
    """Write a checkpoint folder and check that it is complete.

    Args:
        parts: what to put together.
        out: the folder to make; it appears whole or not at all.
        copy_base: copy the base into the folder instead of naming its place.
        overwrite: replace an existing checkpoint.
        seed: of a fresh pooler.

    Raises:
        ArtifactError: `out` exists and may not be replaced, or holds a part.
        CheckpointError: a part is missing or does not fit the others, or `out` is inside the base
            that is to be copied into it.
    """
    given = [(role, getattr(parts, role)) for role in ("base", "adapter", "pooler", "tokenizer")]
    for _, part in given:
        if part is not None:
            _check_exists(part)
    refuse_inside(out, given)
    if copy_base and Path(out).resolve().is_relative_to(parts.base.resolve()):
        raise CheckpointError(
            f"{out} is inside the base {parts.base}, which cannot be copied into itself",
            "choose a folder elsewhere",
        )
    base, tensors, tokenizer = open_base(parts.base)
    pooling = parts.pooler_spec.pooling
    _check_fit(parts, Checkpoint(out, base, tensors, {}, parts.adapter, tokenizer))
    with staged_folder(
        out, marker=DESCRIPTION, overwrite=overwrite, foreign=foreign_files
    ) as stage:
        description = {
            "schema_version": SCHEMA_VERSION,
            "name": parts.name or Path(out).resolve().name,
            "base": _place(parts.base, stage, Path(out), copy_base),
            "adapter": "adapter" if parts.adapter else None,
            "pooler": "pooler.safetensors" if pooling.has_weights else None,
            "pooler_spec": {**asdict(parts.pooler_spec), "pooling": pooling.value},
            "causal": parts.causal,
            "prompts": parts.prompts,
            **_text_section(parts.text, base.text),
        }
        text = json.dumps(description, indent=2) + "\n"
        (stage / DESCRIPTION).write_text(text, encoding="utf-8")
        if parts.adapter is not None:
            shutil.copytree(parts.adapter, stage / "adapter", ignore=_dangling)
        if pooling.has_weights:
            _place_pooler(parts, stage / "pooler.safetensors", base.backbone, seed)
        checkpoint = _opened(stage, Path(out))
        # Of the base as it was given: a copied GGUF file has no tokenizer.json beside it.
        checkpoint = replace(checkpoint, tokenizer=parts.tokenizer or tokenizer)
        write_tokenizer(checkpoint, stage / "tokenizer.json")
        return checkpoint.spec


def _check_fit(parts: Parts, base: Checkpoint) -> None:
    """Check, before anything is copied or made, that the parts' tensors are one model's."""
    spec = parts.pooler_spec if parts.pooler else PoolerSpec(pooling=Pooling.MEAN)
    pooler = open_tensors(parts.pooler) if parts.pooler else {}
    open_weights(replace(base, spec=replace(base.spec, pooler=spec), pooler=pooler))


def _text_section(text: TextSpec | None, base: TextSpec) -> dict[str, Any]:
    """Return the description's `text`, which holds what differs from the base's; else nothing."""
    given, own = asdict(text or base), asdict(base)
    changes = {key: value for key, value in given.items() if value != own[key]}
    return {"text": changes} if changes else {}


def _check_exists(part: Path) -> None:
    if not part.exists():
        raise CheckpointError(f"{part} does not exist", "correct the path")


def _opened(stage: Path, out: Path) -> Checkpoint:
    """Return the staged checkpoint; an error names it by where it was to be."""
    try:
        return open_checkpoint(stage)
    except CheckpointError as error:
        raise CheckpointError(error.problem.replace(str(stage), str(out)), error.fix) from error


@dataclass(frozen=True)
class PoolerSizes:
    """What a pooler's file shows of its sizes; None is what it does not show."""

    hidden_size: int | None = None
    num_latents: int | None = None
    inner_width: int | None = None
    """Heads times head width: how many heads there are does not show."""
    feed_width: int | None = None


def read_pooler_sizes(path: Path) -> PoolerSizes:
    """Read a trained pooler's sizes off its tensors' shapes.

    Raises:
        CheckpointError: the file does not exist or is no safetensors file.
    """
    _check_exists(path)
    shapes = {our_name(key): entry.shape for key, entry in open_tensors(path).items()}

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(POOLER + name, ())
        return shape[axis] if axis < len(shape) else None

    return PoolerSizes(
        hidden_size=size("query.weight", 1),
        num_latents=size("latents", 0),
        inner_width=size("query.weight", 0),
        feed_width=size("feed_down.weight", 1),
    )


def _place_pooler(parts: Parts, path: Path, backbone: BackboneSpec, seed: int) -> None:
    if parts.pooler is not None:
        shutil.copyfile(parts.pooler, path)
    else:
        write_fresh_pooler(path, parts.pooler_spec, backbone, seed)


def _place(base: Path, stage: Path, out: Path, copy: bool) -> str:
    """Return the base's path as the checkpoint names it, copying it in if asked to."""
    if not copy:
        return os.path.relpath(place_of(base), out.resolve())
    if base.is_dir():
        shutil.copytree(base, stage / "base", ignore=_dangling)
        return "base"
    shutil.copyfile(base, stage / base.name)
    return base.name


def _dangling(folder: str, names: list[str]) -> list[str]:
    """Name the links that lead nowhere, for copytree to pass over.

    Its own option for that looks for what a relative link names in the working directory.
    """
    return [name for name in names if not Path(folder, name).exists()]


def write_fresh_pooler(path: Path, spec: PoolerSpec, backbone: BackboneSpec, seed: int) -> None:
    """Write an untrained pooler, float32, seeded: nearly the plain mean."""
    generator = np.random.default_rng(seed)
    shapes = pooler_shapes(spec, backbone)
    entries = [(released_name(name), "F32", shape) for name, shape in shapes.items()]
    with SafetensorsWriter(path, entries) as writer:
        for name, shape in shapes.items():
            writer.write(released_name(name), [_fresh(name, shape, generator)])
        writer.close()


def _fresh(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    values = generator.standard_normal(shape, np.float32)
    if name == "pooler.latents":
        return values
    width = _FRESH_OUTPUT if name in _OUTPUTS else 1.0
    scaled: np.ndarray = values * np.float32(width / np.sqrt(shape[1]))
    return scaled
