"""This file owns the saved steps of a run: a checkpoint each, and what is needed to go on from it.

A step is a folder `steps/000500` that appears whole: `checkpoint/`, which can be exported as it
is, and `state.pt` (weights in float32, optimiser, place in the data; tensors and plain data only,
so that nothing is unpickled that could run code). Older steps are pruned.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from nvembed_deploy.errors import ArtifactError, CheckpointError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.staging import staged_folder
from nvembed_deploy.train.learner import Learner, load_weights, save_checkpoint, whole_weights

_STATE = "state.pt"
_STEPS = "steps"


@dataclass
class Progressing:
    """All that changes during a run; `extra` is plain data."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    step: int
    extra: dict[str, Any]


def saved_steps(out: Path) -> list[Path]:
    """List the complete saved steps, the oldest first."""
    folders = [state.parent for state in (out / _STEPS).glob(f"*/{_STATE}")]
    return sorted((f for f in folders if f.name.isdecimal()), key=lambda f: int(f.name))


def snapshot(state: Progressing) -> dict[str, Any]:
    """Return all of it on the CPU, gathered where it is sharded (all ranks must call)."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "step": state.step,
        "weights": whole_weights(state.learner),
        "optimizer": get_optimizer_state_dict(state.learner, state.optimizer, options=options),
        "extra": state.extra,
    }


def save_step(learner: Learner, contents: dict[str, Any], out: Path, keep: int) -> Path:
    """Write a step from its snapshot and remove all but the newest `keep`.

    Raises:
        ArtifactError: the disk is full; what was saved before stays.
    """
    folder = out / _STEPS / f"{contents['step']:06d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with staged_folder(folder, marker=_STATE, overwrite=True) as stage:
        save_checkpoint(learner, contents["weights"], stage / "checkpoint")
        _write(stage / _STATE, contents)
    for old in saved_steps(out)[:-keep]:
        shutil.rmtree(old)
    return folder


def copy_checkpoint(parts: Parts, out: Path) -> None:
    """Make `out/checkpoint` of the newest step's, in place of the one that is there.

    Args:
        parts: what it is made of, but for adapter and pooler.
        out: the run's folder.
    """
    saved = saved_steps(out)[-1] / "checkpoint"
    pooler = saved / "pooler.safetensors"
    trained = replace(parts, adapter=saved / "adapter", pooler=pooler if pooler.exists() else None)
    assemble_checkpoint(trained, out / "checkpoint", overwrite=True)


def _write(path: Path, contents: dict[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.save(contents, file)
    except (OSError, RuntimeError) as error:  # torch: "unexpected pos 704 vs 598", of a full disk
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise ArtifactError(
            f"cannot write {path}: {cause}", "free space on its disk, or choose another run.out"
        ) from error


def load_step(state: Progressing, folder: Path) -> None:
    """Put a run back to where it was, to the bit.

    Raises:
        CheckpointError: the state is damaged or of another model.
    """
    try:
        saved = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder / _STATE} cannot be read: {error}", f"remove {folder} and resume again"
        ) from error
    trained = state.learner.trained()
    if set(trained) != set(saved["weights"]):
        raise CheckpointError(
            f"{folder / _STATE} is of another model: {len(saved['weights'])} trained tensors, "
            f"expected {len(trained)}",
            "resume with the recipe that the run was begun with",
        )
    load_weights(state.learner, saved["weights"])
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(state.learner, state.optimizer, saved["optimizer"], options=options)
    state.step, state.extra = saved["step"], saved["extra"]
