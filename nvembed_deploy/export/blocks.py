"""This file owns running the float model block by block on texts, its linears as the graph's.

Only one block is in memory. Shapes: B batch, S sequence, D hidden, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from nvembed_deploy.export.formats import Formats
from nvembed_deploy.export.graph_linear import GraphLinear
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.rotation import UNROTATE, RotatedWeights
from nvembed_deploy.model.backbone import padding_mask
from nvembed_deploy.model.nvembed import NVEmbed
from nvembed_deploy.spec import PoolerForm
from nvembed_deploy.text import Batch

States = list[torch.Tensor]
"""Of each batch, [B, S, D]."""
Weigh = Callable[[torch.Tensor], None]
"""Told how much each token of the next batch counts, [B, S, 1]; padding not at all."""


class Blocks:
    """The model's blocks, loaded when they are asked for."""

    def __init__(
        self,
        linears: LinearWeights,
        formats: Formats,
        batches: Sequence[Batch],
        device: torch.device | None = None,
    ) -> None:
        """Take the model's linears (rotated or not), their formats, and the texts.

        `device` is where blocks and states are: a GPU, or the processor if it is left out.
        """
        self.batches, self.spec = batches, linears.weights.spec
        self.device = device or torch.device("cpu")
        self._linears, self._formats = linears, formats
        with torch.device("meta"):
            self._model = NVEmbed(self.spec, PoolerForm.FOLDED)

    def embed(self) -> States:
        """Return the embeddings of all tokens."""
        weights = self._linears.weights
        return [self.place(weights.embed(batch.input_ids_BS)) for batch in self.batches]

    def layer(self, index: int) -> nn.Module:
        """Return a layer of the decoder."""
        meta = self._model.backbone.decoder.layers[index]
        return self._module(meta, f"backbone.layers.{index}.")

    def through(
        self, layer: nn.Module, states: States, weigh: Weigh | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield each batch's next states, so that no more than one batch has both.

        A token counts by how small its state is: an error beside a massive state is nothing. Of a
        state smaller than the norms can tell from 0 (an embedding of zeros) by their epsilon.
        """
        decoder = self._model.backbone.decoder
        rotary = type(decoder.rotary_emb)(decoder.config).to(self.device)
        least = self.spec.backbone.rms_norm_eps
        for hidden, batch in zip(states, self.batches, strict=True):
            mask = self.place(batch.attention_mask_BS)
            if weigh is not None:
                energy = hidden.square().mean(-1, keepdim=True)
                weigh(mask[..., None] / energy.clamp(min=least).sqrt())
            positions = torch.arange(hidden.shape[1], device=self.device)[None]
            yield layer(
                hidden,
                attention_mask=padding_mask(mask, hidden.dtype),
                position_ids=positions,
                position_embeddings=rotary(hidden, positions),
            )

    def normed(self, states: States) -> States:
        """Return the decoder's output: normed, and rotated back."""
        norm = self._module(self._model.backbone.decoder.norm, "backbone.norm.")
        if not isinstance(self._linears.weights, RotatedWeights):
            return [norm(hidden) for hidden in states]
        back_DD = self.place(self._linears.load(UNROTATE))
        return [norm(hidden) @ back_DD.T for hidden in states]

    def pooler(self) -> nn.Module:
        """Return the folded pooler."""
        return self._module(self._model.pooler, "pooler.")

    def pool(
        self, pooler: nn.Module, states: Iterable[torch.Tensor], weigh: Weigh | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield each batch's embeddings [B, D]."""
        for hidden, batch in zip(states, self.batches, strict=True):
            mask = self.place(batch.pool_mask_BS)
            if weigh is not None:
                weigh(mask[..., None].float())
            yield pooler(hidden, mask)

    def place(self, array: np.ndarray) -> torch.Tensor:
        """Return an array as a tensor where blocks are."""
        return torch.from_numpy(array).to(self.device)

    def _module(self, meta: nn.Module, prefix: str) -> nn.Module:
        """Return a module of the model with its weights, each linear as the graph will have it."""
        module = copy.deepcopy(meta)
        for tail, linear in [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]:
            module.set_submodule(tail, self._linear(prefix + tail, linear.bias is not None))
        module = module.to_empty(device=self.device).float().eval().requires_grad_(False)
        for key, parameter in module.named_parameters():
            read = self._linears.weights.read_float32(prefix + key)
            parameter.copy_(torch.from_numpy(read))
        return module

    def _linear(self, name: str, has_bias: bool) -> GraphLinear:
        weight_OI = self.place(self._linears.load(name))
        linear = GraphLinear(name, weight_OI, self._formats.of(name, weight_OI.shape[1]))
        if has_bias:
            linear.bias = self.place(self._linears.weights.read_float32(name + ".bias"))
        weights = self._linears.weights
        if isinstance(weights, RotatedWeights) and name.endswith("down_proj"):
            linear.features = self.place(weights.features)
        return linear


def linears_of(module: nn.Module) -> list[GraphLinear]:
    """Return a block's linears."""
    return [m for m in module.modules() if isinstance(m, GraphLinear)]
