"""This file owns which linears a share of the weights keeps: those whose rounding harms most.

Harm is what rounding does to the embedding, wherever in the model it is done. The float model runs
to its end and back: the gradient of a random direction of the embedding, at a linear's output,
times what rounding changes there, is how far the embedding moves along that direction, to first
order. One pass tells this of all linears, one block in memory. Source: the idea is that of HAWQ-V2
(arXiv 1911.03852); the gradient is this project's own. Shapes: B batch, I inputs, O outputs,
D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.export.block_cache import load_states, save_states
from nvembed_deploy.export.blocks import Blocks, States, linears_of
from nvembed_deploy.export.calibration_texts import few_of
from nvembed_deploy.export.formats import Activations, Formats, LinearFormat
from nvembed_deploy.export.graph_linear import GraphLinear, first_of, round_rows
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.memory import give_back
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.export.quantized import Quantized
from nvembed_deploy.text import Batch

_SEED = 0
_MEDIAN = 0.6745
"""Of the absolute value of a normal number, which a distance is along a normal direction."""


@dataclass(frozen=True)
class Harm:
    """What rounding one group of linears, which read the same input, does to the embeddings."""

    names: tuple[str, ...]
    num_weights: int
    error: float
    """The distance that unit embeddings move, to first order: its median over texts, so that those
    that fall apart or are of few words do not decide for all; squared, so that groups add up."""


def choose_kept(harms: Sequence[Harm], share: float) -> tuple[str, ...]:
    """Return the names that prevent most harm for each weight, with at most `share` of all."""
    budget = share * sum(harm.num_weights for harm in harms)
    kept: list[str] = []
    for harm in sorted(harms, key=lambda harm: -harm.error / harm.num_weights):
        if harm.num_weights <= budget:
            budget -= harm.num_weights
            kept += harm.names
    return tuple(sorted(kept))


def measure_harm(
    linears: LinearWeights,
    formats: Formats,
    batches: Sequence[Batch],
    on_block: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> list[Harm]:
    """Return the harm of each group that `formats` rounds, in the order of the model.

    Weights are rounded to nearest, and inputs where the format says so, once; static ranges, and
    directions to be rounded twice, are not found yet and are left out. In memory are one block and
    its rounded weights; the states of the texts used, before every block, are in a temporary folder
    (1.4 GB for NV-Embed).

    Raises:
        ArtifactError: its disk is full.
    """
    few = few_of(batches)
    with TemporaryDirectory() as folder:
        try:
            paths = _save_inputs(Blocks(linears, Formats(), few, device), Path(folder))
        except ArtifactError as error:
            raise ArtifactError(
                error.problem, "free space there, or set TMPDIR to a folder on another disk"
            ) from error
        rounded = replace(formats, kept=None)  # what is kept already is not asked for again
        return _measure_blocks(Blocks(linears, rounded, few, device), paths, on_block)


@torch.no_grad()
def _save_inputs(blocks: Blocks, folder: Path) -> list[Path]:
    """Save the states that the float model has before each layer, and after the last."""
    paths, states = [], blocks.embed()
    for index in range(blocks.spec.backbone.num_layers + 1):
        paths.append(folder / f"{index}.safetensors")
        save_states(paths[-1], [hidden.cpu().numpy() for hidden in states])
        if index < blocks.spec.backbone.num_layers:
            states = list(blocks.through(blocks.layer(index), states))
    return paths


def _measure_blocks(blocks: Blocks, paths: list[Path], on_block: Callable[[], None]) -> list[Harm]:
    """Go backward from the embeddings; the states before each block are at its path."""
    states = _take_leaves(paths.pop(), blocks.device)
    harms = _measure(blocks.pooler(), partial(_along_random, blocks, states))
    on_block()
    for index in reversed(range(len(paths))):
        after, states = states, _take_leaves(paths.pop(), blocks.device)
        run = partial(_along_gradients, blocks, states, after)
        harms = _measure(blocks.layer(index), run) + harms
        on_block()
    return harms


def _take_leaves(path: Path, device: torch.device) -> States:
    states = [torch.from_numpy(hidden).to(device) for hidden in load_states(path)]
    path.unlink()
    return [hidden.requires_grad_() for hidden in states]


def _along_random(blocks: Blocks, states: States, pooler: nn.Module) -> Iterator[torch.Tensor]:
    """Yield, of each batch, the sum of how far unit embeddings reach in random directions."""
    generator = torch.Generator().manual_seed(_SEED)
    for embedding_BD in blocks.pool(pooler, blocks.normed(states)):
        direction_BD = torch.randn(embedding_BD.shape, generator=generator).to(embedding_BD.device)
        yield (functional.normalize(embedding_BD, dim=-1) * direction_BD).sum()


def _along_gradients(
    blocks: Blocks, states: States, after: States, layer: nn.Module
) -> Iterator[torch.Tensor]:
    """Yield, of each batch, what has the gradients that came back to the states after the layer."""
    for hidden, leaf in zip(blocks.through(layer, states), after, strict=True):
        assert leaf.grad is not None, "the block after it has run backward"
        yield (hidden * leaf.grad).sum()


def _measure(block: nn.Module, run: Callable[[nn.Module], Iterable[torch.Tensor]]) -> list[Harm]:
    """Return the harm of a block's groups; each batch of a run is a sum, to go backward from."""
    watch = _Watch(linears_of(block))
    for along in run(block):
        along.backward()  # type: ignore[no-untyped-call]
        watch.close_batch()
    harms = watch.harms()
    for linear in linears_of(block):
        linear.observer = None  # the watch holds it: together they would wait for a collection
    give_back()
    return harms


@dataclass(frozen=True)
class _Rounded:
    """A linear as it will be, a byte a weight."""

    form: LinearFormat
    quantized: Quantized
    bias_O: torch.Tensor | None

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [.., I] through it, [.., O]."""
        if self.form.activations is Activations.ROW:
            x = round_rows(x, self.form)
        weight_OI = torch.from_numpy(self.quantized.dequantize()).to(x.device)
        return functional.linear(x, weight_OI, self.bias_O)


class _Watch:
    """Follows what rounding changes in the outputs of float linears, as gradients come back."""

    def __init__(self, linears: Sequence[GraphLinear]) -> None:
        self._groups: dict[str, list[GraphLinear]] = {}
        self._rounded: dict[str, _Rounded] = {}
        for linear in linears:
            if linear.form is not None:
                quantized = round_nearest(linear.weight_OI, linear.form)
                self._rounded[linear.name] = _Rounded(linear.form, quantized, linear.bias)
                self._groups.setdefault(first_of(linear.name), []).append(linear)
                linear.form, linear.observer = None, self
        self._moves: dict[str, torch.Tensor] = {}
        self._distances: dict[str, list[torch.Tensor]] = {first: [] for first in self._groups}

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """See `graph_linear.Observer`."""
        with torch.no_grad():
            change = self._rounded[name].run(x) - y
        move = partial(self._move, first_of(name), change)
        y.register_hook(move)  # type: ignore[no-untyped-call]

    def close_batch(self) -> None:
        """Take the batch's moves together, of the linears that share an input."""
        for first, move_B in self._moves.items():
            self._distances[first].append(move_B.abs())
        self._moves.clear()

    def harms(self) -> list[Harm]:
        """Return the harm of each group, in the order of the block."""
        return [
            Harm(
                tuple(linear.name for linear in group),
                sum(linear.weight_OI.numel() for linear in group),
                (float(torch.cat(self._distances[first]).median()) / _MEDIAN) ** 2,
            )
            for first, group in self._groups.items()
        ]

    def _move(self, first: str, change: torch.Tensor, gradient: torch.Tensor) -> None:
        move_B = (gradient * change).flatten(1).sum(1)
        self._moves[first] = self._moves.get(first, 0) + move_B
