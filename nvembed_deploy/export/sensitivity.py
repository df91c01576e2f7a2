"""This file owns which linears a share of 16 bit is spent on: those whose rounding harms most.

Each group of linears that read the same input is rounded alone, and the texts go through its block
with it and without. What changes, beside the size of what comes out, is its harm: the states of a
decoder add up, so that parts of their size compare across blocks. Source: the idea is that of
HAWQ (arXiv 1905.03696) and of modelopt's AutoQuantize, with the block's own error as the measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nvembed_deploy.export.blocks import Blocks, States, few_of, linears_of
from nvembed_deploy.export.formats import Formats, LinearFormat
from nvembed_deploy.export.graph_linear import GraphLinear, first_of
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.text import Batch


@dataclass(frozen=True)
class Harm:
    """What rounding one group of linears does to its block's output."""

    names: tuple[str, ...]
    num_weights: int
    error: float
    """Mean over tokens of the squared change, divided by the squared output."""


def choose_kept(harms: Sequence[Harm], share: float) -> tuple[str, ...]:
    """Return the names that prevent most harm for each weight, with at most `share` of all."""
    budget = share * sum(harm.num_weights for harm in harms)
    kept: list[str] = []
    for harm in sorted(harms, key=lambda harm: -harm.error / harm.num_weights):
        if harm.num_weights <= budget:
            budget -= harm.num_weights
            kept += harm.names
    return tuple(sorted(kept))


@torch.inference_mode()
def measure_harm(
    linears: LinearWeights,
    formats: Formats,
    batches: Sequence[Batch],
    on_block: Callable[[], None] = lambda: None,
) -> list[Harm]:
    """Return the harm of each group that `formats` rounds, block after block.

    Weights are rounded to nearest, and inputs where the format says so; static ranges are not found
    yet and are left out. One block is in memory, and the states of the texts used.
    """
    few = few_of(batches)
    blocks = Blocks(linears, formats, few)
    states, harms = blocks.embed(), []
    for index in range(blocks.spec.backbone.num_layers):
        layer = blocks.layer(index)
        masks = [torch.from_numpy(batch.attention_mask_BS) > 0 for batch in few]
        found, states = _measure(layer, lambda: blocks.through(layer, states), masks)  # noqa: B023
        harms += found
        on_block()
    pooler, last = blocks.pooler(), blocks.normed(states)
    found, _ = _measure(pooler, lambda: blocks.pool(pooler, last), None)
    on_block()
    return harms + found


def _measure(
    block: nn.Module, run: Callable[[], Iterable[torch.Tensor]], masks: list[torch.Tensor] | None
) -> tuple[list[Harm], States]:
    """Return each group's harm, and what comes out of the float block."""
    linears = linears_of(block)
    groups: dict[str, list[tuple[GraphLinear, LinearFormat]]] = {}
    for linear in linears:
        if linear.form is not None:
            groups.setdefault(first_of(linear.name), []).append((linear, linear.form))
        linear.form = None
    exact = list(run())
    harms = []
    for group in groups.values():
        floats = [linear.weight_OI for linear, _ in group]
        for linear, form in group:
            linear.form = form
            linear.take(round_nearest(linear.weight_OI.numpy(), form))
        names, num_weights = (
            tuple(linear.name for linear, _ in group),
            sum(map(torch.numel, floats)),
        )
        harms.append(Harm(names, num_weights, _error(exact, run(), masks)))
        for (linear, _), weight_OI in zip(group, floats, strict=True):
            linear.form, linear.weight_OI = None, weight_OI
    return harms, exact


def _error(
    exact: States, rounded: Iterable[torch.Tensor], masks: list[torch.Tensor] | None
) -> float:
    """Return the mean relative squared difference over the tokens that a mask keeps."""
    parts = []
    for place, (right, got) in enumerate(zip(exact, rounded, strict=True)):
        part = (got - right).square().sum(-1) / right.square().sum(-1)
        parts.append(part if masks is None else part[masks[place]])
    return float(torch.cat([part.flatten() for part in parts]).mean())
