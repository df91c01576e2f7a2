"""Shared by the processes of test_shard.py: a batch's loss and gradients, gathered from all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from nvembed_deploy.train.batch import make_batch
from nvembed_deploy.train.learner import Learner
from nvembed_deploy.train.leaving import leave_group
from nvembed_deploy.train.loop import _Run
from nvembed_deploy.train.recipe import TrainRecipe, load_recipe
from nvembed_deploy.train.run_data import open_sources


def shake(learner: Learner) -> None:
    """Move what begins at nothing, so that every gradient is something."""
    for name, parameter in learner.trained().items():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
            parameter.data *= 0.02


def gradients(recipe: TrainRecipe) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of a recipe's first batch."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    with accelerator.main_process_first():
        sources = open_sources(recipe)
    run = _Run(recipe, accelerator, sources)
    shake(run.learner)
    examples = run.mixture.draw(recipe.batch.queries)
    loss = run._backward(make_batch(examples, run.tokenizer, recipe.text))
    run._sum_gradients()
    found: dict[str, Any] = {"loss": torch.tensor(loss)}
    for name, parameter in run.learner.trained().items():
        grad: Any = parameter.grad
        found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def write_gradients(recipe: Path, out: Path) -> None:
    """Write a recipe's `gradients`, as one of several processes."""
    found = gradients(load_recipe(recipe))
    if torch.distributed.get_rank() == 0:
        save_file(found, out)
    accelerator = Accelerator(cpu=True)
    accelerator.wait_for_everyone()
    leave_group(accelerator)
