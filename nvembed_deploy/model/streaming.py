"""This file owns running the model without holding it: each linear reads its rows as it multiplies.

It is the oracle of the export's self-check: transformers' decoder layer and the faithful pooler,
float32, one block at a time over a list of batches. Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.model.backbone import padding_mask
from nvembed_deploy.model.nvembed import NVEmbed
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch


class StreamedLinear(nn.Module):
    """A linear whose weight stays on disk: blocks of output rows are read, applied, dropped."""

    def __init__(self, weights: Weights, name: str, has_bias: bool) -> None:
        """Take the linear's name without `.weight`."""
        super().__init__()
        self._weights, self._name, self._has_bias = weights, name, has_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ W.T (+ b), float32."""
        name = self._name + ".weight"
        blocks = [
            functional.linear(x, torch.from_numpy(self._weights.read_float32(name, rows)))
            for rows in self._weights.row_blocks(name)
        ]
        product = torch.cat(blocks, dim=-1)
        if not self._has_bias:
            return product
        return product + torch.from_numpy(self._weights.read_float32(self._name + ".bias"))


class StreamingModel:
    """The model's consecutive blocks over a fixed list of batches; see `run`."""

    def __init__(self, weights: Weights, batches: Sequence[Batch]) -> None:
        """Take the checkpoint's weights and the batches to run."""
        self._weights = weights
        self._batches = batches
        with torch.device("meta"):
            self._model = NVEmbed(weights.spec)
        self._masks = [torch.from_numpy(batch.attention_mask_BS) for batch in batches]

    @torch.inference_mode()
    def run(self) -> Iterator[list[np.ndarray]]:
        """Yield, block after block, the output for every batch.

        First the token embeddings, then each layer's output (hidden_BSD, float32), last the
        unit-length embedding_BD.
        """
        states = [
            torch.from_numpy(self._weights.embed(batch.input_ids_BS)) for batch in self._batches
        ]
        yield [state.numpy() for state in states]
        for index in range(self._weights.spec.backbone.num_layers):
            states = self._layer(index, states)
            yield [state.numpy() for state in states]
        yield [state.numpy() for state in self._pool(states)]

    def _layer(self, index: int, states: list[torch.Tensor]) -> list[torch.Tensor]:
        decoder = self._model.backbone.decoder
        layer = self._stream(decoder.layers[index], f"backbone.layers.{index}.")
        rotary = type(decoder.rotary_emb)(decoder.config)
        outputs = []
        for hidden, mask in zip(states, self._masks, strict=True):
            positions = torch.arange(hidden.shape[1])[None]
            outputs.append(
                layer(
                    hidden,
                    attention_mask=padding_mask(mask, hidden.dtype),
                    position_ids=positions,
                    position_embeddings=rotary(hidden, positions),
                )
            )
        return outputs

    def _pool(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        norm = self._stream(self._model.backbone.decoder.norm, "backbone.norm.")
        pooler = self._stream(self._model.pooler, "pooler.")
        outputs = []
        for hidden, batch in zip(states, self._batches, strict=True):
            pooled = pooler(norm(hidden), torch.from_numpy(batch.pool_mask_BS))
            outputs.append(functional.normalize(pooled, dim=-1))
        return outputs

    def _stream(self, module: nn.Module, prefix: str) -> nn.Module:
        """Give a meta module its weights, whose names begin with `prefix`: linears stay on disk."""
        linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
        for name, linear in linears.items():
            streamed = StreamedLinear(self._weights, prefix + name, linear.bias is not None)
            module.set_submodule(name, streamed)
        module = module.to_empty(device="cpu").float().eval()
        for key, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(self._weights.read_float32(prefix + key)))
        return module
