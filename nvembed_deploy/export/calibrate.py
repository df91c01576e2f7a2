"""This file owns quantising on calibration texts: the model runs block by block, being rounded.

A block's linears see the texts once to learn what their inputs are like, are rounded for those
inputs, and then pass the texts on as the quantised model will. Tokens count by how large their
error is beside their state: a massive token must not decide alone. Shapes: B batch, S sequence,
D hidden, I inputs, O outputs, N tokens, K directions, J = I + K.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from nvembed_deploy.export.block_cache import BlockCache, RoundedBlock
from nvembed_deploy.export.blocks import Blocks, States, linears_of
from nvembed_deploy.export.calibration_record import LinearRange
from nvembed_deploy.export.compensate import compensate
from nvembed_deploy.export.energy import add_energy, complete_energy
from nvembed_deploy.export.formats import Activations, Code, LinearFormat
from nvembed_deploy.export.graph_linear import GraphLinear, first_of, is_shared
from nvembed_deploy.export.memory import give_back
from nvembed_deploy.export.principal import find_basis, paired_codes, take_out, widen_weight
from nvembed_deploy.export.quantize import find_scales
from nvembed_deploy.export.quantized import Quantized
from nvembed_deploy.export.ranges import InputObserver


@dataclass
class _Inputs(InputObserver):
    """What the inputs of linears were like: `energy_II` sums w^2 x x^T over tokens."""

    energy: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    bases: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, name: str, x_NI: torch.Tensor, weights_N1: torch.Tensor) -> None:
        """See `InputObserver`."""
        super().see(name, x_NI, weights_N1)
        x_NI = x_NI * weights_N1
        if name not in self.energy:
            self.energy[name] = x_NI.new_zeros(x_NI.shape[1], x_NI.shape[1])
        add_energy(self.energy[name], x_NI)

    def take_energy(self, name: str) -> torch.Tensor:
        """Return the energy of a linear's input: a copy where others share it."""
        first = first_of(name)
        return self.energy[first].clone() if is_shared(first) else self.energy.pop(first)

    def take_rest(self, name: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the energy of a linear's input beside its principal directions, and their basis.

        The basis [I, K] is found for the first that shares the input.
        """
        energy_II, first = self.take_energy(name), first_of(name)
        if first not in self.bases:
            self.bases[first] = find_basis(energy_II, rank)
        take_out(energy_II, self.bases[first])
        return energy_II, self.bases[first]

    def find_scale(self, name: str, weight_OI: torch.Tensor, code: Code) -> float:
        """Return the one scale of a linear's input, found for the first that shares it."""
        name = first_of(name)
        if name not in self.scales:
            self.scales[name] = self.seen[name].find_scale(weight_OI, code)
        return self.scales[name]


class CompensatingQuantizer:
    """Rounds linears in the order of the graph; see `weight_file.Quantizer`."""

    def __init__(self, blocks: Blocks, cache: BlockCache | None = None) -> None:
        """Take the float model's blocks, with the formats to round to and the texts.

        Blocks that the cache has are not computed again; those that are computed go there.
        """
        self._blocks, self._cache = blocks, cache
        self._rounded = self._run()
        self._ready: dict[str, Quantized] = {}
        self.ranges: dict[str, LinearRange] = {}

    def __call__(self, name: str) -> Quantized:
        """Return the quantised weight of the linear `name`, running on to its block."""
        while name not in self._ready:
            self._run_on()
        return self._ready.pop(name)

    def range_of(self, name: str) -> LinearRange:
        """Return what was seen of the linear `name`, running on to its block."""
        while name not in self.ranges:
            self._run_on()
        return self.ranges[name]

    def _run_on(self) -> None:
        block = next(self._rounded)
        self._ready = block.linears
        self.ranges |= block.ranges

    @torch.inference_mode()
    def _run(self) -> Iterator[RoundedBlock]:
        blocks, cache, num_layers = self._blocks, self._cache, self._blocks.spec.backbone.num_layers
        done = 0 if cache is None else cache.count
        if cache is not None:
            yield from map(cache.load, range(done))
        if done > num_layers:
            return
        if cache is not None and done:
            states = [blocks.place(state) for state in cache.states()]
        else:
            states = blocks.embed()
        for index in range(done, num_layers):
            yield self._kept(self._quantize_layer(index, states), states)
        states, pooler = blocks.normed(states), blocks.pooler()
        used_up = (states.pop(0) for _ in range(len(states)))  # before its matrices are inverted
        yield self._kept(
            self._quantize(
                pooler, lambda inputs: blocks.pool(pooler, used_up, inputs.weigh), is_last=True
            ),
            [],
        )

    def _kept(self, block: RoundedBlock, states: States) -> RoundedBlock:
        if self._cache is not None:
            self._cache.add(block, [state.cpu().numpy() for state in states])
        return block

    def _quantize_layer(self, index: int, states: States) -> RoundedBlock:
        """Round a layer's linears, and pass the states on; the layer itself is not kept."""
        layer = self._blocks.layer(index)
        rounded = self._quantize(
            layer, lambda inputs: self._blocks.through(layer, states, inputs.weigh)
        )
        for place, hidden in enumerate(self._blocks.through(layer, states)):
            states[place] = hidden
        return rounded

    def _quantize(
        self,
        module: nn.Module,
        run: Callable[[_Inputs], Iterable[torch.Tensor]],
        *,
        is_last: bool = False,
    ) -> RoundedBlock:
        """Run a block once to see its inputs, then round its linears; the last runs no more."""
        linears, inputs = linears_of(module), _Inputs()
        for linear in linears:
            linear.observer = inputs
        deque(run(inputs), maxlen=0)
        for energy_II in inputs.energy.values():
            complete_energy(energy_II)
        give_back()
        rounded: dict[str, Quantized | None] = {}
        for linear in linears:
            rounded[linear.name] = _quantized(linear, inputs)
            if is_last:
                linear.drop()
        ranges = {
            linear.name: LinearRange(
                inputs.seen[first_of(linear.name)].largest,
                linear.input_scale,
                inputs.outputs[linear.name],
            )
            for linear in linears
        }
        return RoundedBlock({name: q for name, q in rounded.items() if q is not None}, ranges)


def _quantized(linear: GraphLinear, inputs: _Inputs) -> Quantized | None:
    """Round a linear's weight for these inputs; from now on it is the rounded one."""
    linear.observer, form = None, linear.form
    if form is None:
        return None
    if form.rank:
        quantized = _rounded_wide(linear, form, inputs)
    else:
        energy_II = inputs.take_energy(linear.name)
        quantized = compensate(linear.weight_OI, energy_II, form)
    if form.activations is Activations.STATIC:
        scale = inputs.find_scale(linear.name, linear.weight_OI, form.code)
        quantized = replace(quantized, input_scale=scale)
    linear.take(quantized)
    return quantized


def _rounded_wide(linear: GraphLinear, form: LinearFormat, inputs: _Inputs) -> Quantized:
    """Round a weight for what its input has beside a few directions, and for these, twice."""
    energy_II, basis_IK = inputs.take_rest(linear.name, form.rank)
    wide_OJ, num_inputs = widen_weight(linear.weight_OI, basis_IK), len(basis_IK)
    scale_OG = find_scales(wide_OJ, form)
    rest = compensate(wide_OJ[:, :num_inputs], energy_II, form, scale_OG)
    along = paired_codes(wide_OJ[:, num_inputs:], scale_OG)
    codes = np.concatenate([rest.codes_OI, along], 1)
    return replace(rest, codes_OI=codes, basis_IK=basis_IK.cpu().numpy())
