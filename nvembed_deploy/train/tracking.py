"""This file owns trackers: where else a run's log goes, TensorBoard or Weights & Biases.

They write under the run's folder: `tensorboard/` and `wandb/`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from nvembed_deploy.errors import InputError, MissingPackageError
from nvembed_deploy.train.recipe import TrainRecipe

_PROJECT = "nvembed-deploy"


def check_tracker(tracker: str) -> None:
    """Refuse a tracker that could not write.

    Raises:
        MissingPackageError: its package is not installed.
    """
    if tracker != "none" and find_spec(tracker) is None:
        raise MissingPackageError(
            f"run.tracker is {tracker!r}, which is not installed",
            "pip install 'nvembed-deploy[train-tracking]'",
        )


def start_tracker(accelerator: Any, recipe: TrainRecipe, step: int) -> None:  # noqa: ANN401 - untyped
    """Begin to track, or go on after `step`.

    Raises:
        InputError: Weights & Biases cannot begin: nobody is logged in, or its server is not there.
    """
    run = recipe.run
    if run.tracker == "tensorboard":
        options = {"tensorboard": {"purge_step": step + 1}}
        accelerator.init_trackers("tensorboard", init_kwargs=options)
    elif run.tracker == "wandb":
        settings = {"dir": run.out, "name": run.out.name, "config": recipe.model_dump(mode="json")}
        try:
            accelerator.init_trackers(_PROJECT, init_kwargs={"wandb": settings})
        except Exception as error:
            raise InputError(
                f"run.tracker is 'wandb', which cannot begin: {error}",
                "wandb login, or set WANDB_MODE=offline in the environment",
            ) from error
