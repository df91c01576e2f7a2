"""This file owns sharding: a learner's weights spread over all processes, whole layer by layer.

It is torch's FSDP2. Every process must take the same steps: each forward and backward pass of a
layer gathers it from all. A decoder is loaded to the CPU first, so that no GPU ever holds it whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nvembed_deploy.train.learner import Learner


def shard(learner: Learner, device: torch.device) -> None:
    """Spread the weights and move them to the device; make the optimiser of them afterwards.

    Gradients are summed over processes, not averaged as FSDP would: they are shares of one loss's.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in _units(learner):
        unit: Any = fully_shard(module, mesh=mesh)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _units(learner: Learner) -> list[nn.Module]:
    """Return what is gathered at a time, the whole last: it takes what is left (embeddings)."""
    model = learner.model
    poolers = [model.pooler] if any(True for _ in model.pooler.parameters()) else []
    return [*model.backbone.decoder.layers, *poolers, learner]
