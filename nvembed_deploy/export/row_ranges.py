"""This file owns which inputs need a range for each token: those where one range loses a token.

A few linears of a model read a few tokens that are a thousand times the others: a range for all
clips them or crushes the rest, and the mean error hides it. Which linears they are is the model's
own affair, so it is measured: texts pass the float model block by block, each input is rounded in
its best single range, and the token that this harms most decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from nvembed_deploy.export.blocks import Blocks, States, Weigh, linears_of
from nvembed_deploy.export.calibration_texts import few_of
from nvembed_deploy.export.formats import Activations, Formats
from nvembed_deploy.export.graph_linear import first_of
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.ranges import InputObserver
from nvembed_deploy.text import Batch

_WORST = 0.01
"""Squared error beside the token's own output: a tenth of what the linear gives for it is lost."""


@torch.inference_mode()
def find_uneven(
    linears: LinearWeights,
    formats: Formats,
    batches: Sequence[Batch],
    on_block: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> tuple[str, ...]:
    """Return the linears, of those that `formats` gives a range per token, that need one.

    One block is in memory, and the states of the texts used.
    """
    blocks, uneven = Blocks(linears, formats, few_of(batches), device), []
    states = blocks.embed()
    for index in range(blocks.spec.backbone.num_layers):
        layer = blocks.layer(index)
        names, states = _measure(layer, lambda weigh: blocks.through(layer, states, weigh))  # noqa: B023
        uneven += names
        on_block()
    pooler, last = blocks.pooler(), blocks.normed(states)
    names, _ = _measure(pooler, lambda weigh: blocks.pool(pooler, last, weigh))
    on_block()
    return tuple(uneven + names)


def _measure(
    block: nn.Module, run: Callable[[Weigh], Iterable[torch.Tensor]]
) -> tuple[list[str], States]:
    """Return a block's uneven linears, and what comes out of the float block."""
    observer, linears = InputObserver(is_sampled=False), linears_of(block)
    codes = {
        linear.name: linear.form.code
        for linear in linears
        if linear.form is not None and linear.form.activations is Activations.ROW
    }
    for linear in linears:
        linear.form, linear.observer = None, observer
    states = list(run(observer.weigh))
    firsts = [linear for linear in linears if linear.name in observer.seen.keys() & codes.keys()]
    uneven = {
        linear.name
        for linear in firsts
        if observer.seen[linear.name].worst_token(linear.weight_OI, codes[linear.name]) > _WORST
    }
    return [linear.name for linear in linears if first_of(linear.name) in uneven], states
