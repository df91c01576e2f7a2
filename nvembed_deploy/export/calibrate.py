"""This file owns quantising on calibration texts: the model runs block by block, being rounded.

Only one block is in memory. Its linears see the texts once to learn what their inputs are like, are
rounded for those inputs, and then pass the texts on as the quantised model will. Tokens count by
how large their error is beside their state: a massive token must not decide alone. Shapes: B batch,
S sequence, D hidden, I inputs, O outputs, N tokens.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.export.calibration_record import InputRange
from nvembed_deploy.export.compensate import compensate
from nvembed_deploy.export.formats import Activations, Code, Formats, LinearFormat
from nvembed_deploy.export.linear import SMALLEST_ROW
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.quantize import round_to_code
from nvembed_deploy.export.quantized import Quantized
from nvembed_deploy.export.ranges import SeenInputs
from nvembed_deploy.export.rotation import UNROTATE, RotatedWeights
from nvembed_deploy.model.backbone import padding_mask
from nvembed_deploy.model.nvembed import NVEmbed
from nvembed_deploy.spec import PoolerForm
from nvembed_deploy.text import Batch

_ADD_TO_STATES = ("o_proj", "down_proj")
_SHARING_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linears that read what another reads: its energy and its range are theirs."""
_SHARING, _SHARED = tuple(_SHARING_WITH), tuple(set(_SHARING_WITH.values()))


@dataclass
class _Inputs:
    """What the inputs of linears were like: `energy_II` sums w^2 x x^T over tokens."""

    token_weights_BS1: torch.Tensor
    energy: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: dict[str, SeenInputs] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, x: torch.Tensor) -> None:
        """Add a batch of inputs [B, S, I], or of pooled features [B, I], of a linear."""
        if name.endswith(_SHARING):
            return
        weights_N1 = torch.ones(len(x), 1)
        if x.dim() == self.token_weights_BS1.dim():
            kept = self.token_weights_BS1[..., 0] > 0
            x, weights_N1 = x[kept], self.token_weights_BS1[kept]
        if not name.endswith(_ADD_TO_STATES):
            weights_N1 = torch.ones_like(weights_N1)
        self.seen.setdefault(name, SeenInputs()).add(x, weights_N1)
        x = x * weights_N1
        if name in self.energy:
            self.energy[name].addmm_(x.T, x)
        else:
            self.energy[name] = x.T @ x

    def take_energy(self, name: str) -> torch.Tensor:
        """Return the energy of a linear's input, and forget it unless another shares it."""
        shared = _first(name)
        return self.energy[shared] if shared.endswith(_SHARED) else self.energy.pop(shared)

    def find_scale(self, name: str, weight_OI: torch.Tensor, code: Code) -> float:
        """Return the one scale of a linear's input, found for the first that shares it."""
        name = _first(name)
        if name not in self.scales:
            self.scales[name] = self.seen[name].find_scale(weight_OI, code)
        return self.scales[name]


def _first(name: str) -> str:
    """Return the linear whose input this one shares."""
    for sharing, first in _SHARING_WITH.items():
        if name.endswith(sharing):
            return name.replace(sharing, first)
    return name


class _Linear(nn.Module):
    """A linear of the model as the graph has it: input rounding, weight, and what it has seen."""

    def __init__(self, name: str, weight_OI: np.ndarray, form: LinearFormat | None) -> None:
        super().__init__()
        self.name, self.form, self.weight_OI = name, form, torch.from_numpy(weight_OI)
        self.bias: torch.Tensor | None = None
        self.features: torch.Tensor | None = None
        self.inputs: _Inputs | None = None
        self.input_scale: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.features is not None:
            x = (x.reshape(-1, len(self.features)) @ self.features).reshape(x.shape)
        if self.form is not None and self.form.activations is Activations.ROW:
            x = round_rows(x, self.form)
        elif self.form is not None and self.input_scale is not None:
            x = round_to_code(x / self.input_scale, self.form.code) * self.input_scale
        if self.inputs is not None:
            self.inputs.add(self.name, x)
        return functional.linear(x, self.weight_OI, self.bias)

    def quantize(self, inputs: _Inputs) -> Quantized | None:
        """Round the weight for these inputs; from now on the linear is the rounded one."""
        self.inputs = None
        if self.form is None:
            return None
        quantized = compensate(self.weight_OI.numpy(), inputs.take_energy(self.name), self.form)
        if self.form.activations is Activations.STATIC:
            self.input_scale = inputs.find_scale(self.name, self.weight_OI, self.form.code)
            quantized = replace(quantized, input_scale=self.input_scale)
        self.weight_OI = torch.from_numpy(quantized.dequantize())
        return quantized


def round_rows(x: torch.Tensor, form: LinearFormat) -> torch.Tensor:
    """Round each row to codes in a range of its own, as the graph does (`linear.py`)."""
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW)
    greatest = form.code.greatest
    return round_to_code(x / largest * greatest, form.code) / greatest * largest


class CompensatingQuantizer:
    """Rounds linears in the order of the graph; see `weight_file.Quantizer`."""

    def __init__(self, linears: LinearWeights, formats: Formats, batches: Sequence[Batch]) -> None:
        """Take the model's linears (rotated or not), their formats, and the texts."""
        self._linears, self._formats, self._batches = linears, formats, batches
        self._spec = linears.weights.spec
        with torch.device("meta"):
            self._model = NVEmbed(self._spec, PoolerForm.FOLDED)
        self._blocks = self._run()
        self._ready: dict[str, Quantized] = {}
        self.ranges: dict[str, InputRange] = {}

    def __call__(self, name: str) -> Quantized:
        """Return the quantised weight of the linear `name`, running on to its block."""
        while name not in self._ready:
            self._ready = next(self._blocks)
        return self._ready.pop(name)

    @torch.inference_mode()
    def _run(self) -> Iterator[dict[str, Quantized]]:
        states = self._embed()
        for index in range(self._spec.backbone.num_layers):
            layer = self._module(self._model.backbone.decoder.layers[index], _layer_name(index))
            yield self._quantize(layer, lambda: deque(self._through(layer, states), 0))  # noqa: B023
            for place, hidden in enumerate(self._through(layer, states)):
                states[place] = hidden
        states = self._normed(states)
        pooler = self._module(self._model.pooler, "pooler.")
        yield self._quantize(pooler, lambda: self._pool(pooler, states))

    def _quantize(self, module: nn.Module, run: Callable[[], object]) -> dict[str, Quantized]:
        """Run a block once to see its inputs, then round its linears."""
        linears = [m for m in module.modules() if isinstance(m, _Linear)]
        inputs = _Inputs(torch.empty(0))
        for linear in linears:
            linear.inputs = inputs
        run()
        rounded = {linear.name: linear.quantize(inputs) for linear in linears}
        self.ranges |= {
            linear.name: InputRange(inputs.seen[_first(linear.name)].largest, linear.input_scale)
            for linear in linears
        }
        return {name: quantized for name, quantized in rounded.items() if quantized is not None}

    def _embed(self) -> list[torch.Tensor]:
        name, weights = "backbone.embed_tokens.weight", self._linears.weights
        states = []
        for batch in self._batches:
            ids, inverse = np.unique(batch.input_ids_BS, return_inverse=True)
            rows = np.concatenate([weights.read_float32(name, slice(i, i + 1)) for i in ids])
            states.append(torch.from_numpy(rows[inverse.reshape(batch.input_ids_BS.shape)]))
        return states

    def _through(self, layer: nn.Module, states: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield each batch's next states, so that no more than one batch has both."""
        decoder = self._model.backbone.decoder
        rotary = type(decoder.rotary_emb)(decoder.config)
        for hidden, batch in zip(states, self._batches, strict=True):
            mask = torch.from_numpy(batch.attention_mask_BS)
            self._weigh(layer, mask[..., None] / hidden.square().mean(-1, keepdim=True).sqrt())
            positions = torch.arange(hidden.shape[1])[None]
            yield layer(
                hidden,
                attention_mask=padding_mask(mask, hidden.dtype),
                position_ids=positions,
                position_embeddings=rotary(hidden, positions),
            )

    def _normed(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        norm = self._module(self._model.backbone.decoder.norm, "backbone.norm.")
        if not isinstance(self._linears.weights, RotatedWeights):
            return [norm(hidden) for hidden in states]
        back_DD = torch.from_numpy(self._linears.load(UNROTATE))
        return [norm(hidden) @ back_DD.T for hidden in states]

    def _pool(self, pooler: nn.Module, states: list[torch.Tensor]) -> None:
        for hidden, batch in zip(states, self._batches, strict=True):
            mask = torch.from_numpy(batch.pool_mask_BS)
            self._weigh(pooler, mask[..., None].float())
            pooler(hidden, mask)

    def _weigh(self, module: nn.Module, token_weights_BS1: torch.Tensor) -> None:
        for linear in module.modules():
            if isinstance(linear, _Linear) and linear.inputs is not None:
                linear.inputs.token_weights_BS1 = token_weights_BS1

    def _module(self, meta: nn.Module, prefix: str) -> nn.Module:
        """Return a module of the model with its weights, each linear as the graph will have it."""
        module = copy.deepcopy(meta)
        for tail, linear in [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]:
            module.set_submodule(tail, self._linear(prefix + tail, linear.bias is not None))
        module = module.to_empty(device="cpu").float().eval()
        for key, parameter in module.named_parameters():
            read = self._linears.weights.read_float32(prefix + key)
            parameter.copy_(torch.from_numpy(read))
        return module

    def _linear(self, name: str, has_bias: bool) -> _Linear:
        weight_OI = self._linears.load(name)
        linear = _Linear(name, weight_OI, self._formats.of(name, weight_OI.shape[1]))
        if has_bias:
            linear.bias = torch.from_numpy(self._linears.weights.read_float32(name + ".bias"))
        weights = self._linears.weights
        if isinstance(weights, RotatedWeights) and name.endswith("down_proj"):
            linear.features = torch.from_numpy(weights.features)
        return linear


def _layer_name(index: int) -> str:
    return f"backbone.layers.{index}."
