"""This file owns running the model one block at a time, so that a model larger than memory runs.

It is the oracle of the export's self-check: transformers' decoder layer and the faithful pooler in
float32, each loaded, applied to every batch, and dropped. Shapes: B batch, S sequence, D hidden.
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
        states = self._embed()
        yield [state.numpy() for state in states]
        for index in range(self._weights.spec.backbone.num_layers):
            states = self._layer(index, states)
            yield [state.numpy() for state in states]
        yield [state.numpy() for state in self._pool(states)]

    def _embed(self) -> list[torch.Tensor]:
        name = "backbone.embed_tokens.weight"
        states = []
        for batch in self._batches:
            ids, inverse = np.unique(batch.input_ids_BS, return_inverse=True)
            rows = np.stack([self._weights.read_float32(name, slice(i, i + 1))[0] for i in ids])
            states.append(torch.from_numpy(rows[inverse.reshape(batch.input_ids_BS.shape)]))
        return states

    def _layer(self, index: int, states: list[torch.Tensor]) -> list[torch.Tensor]:
        decoder = self._model.backbone.decoder
        layer = self._load(decoder.layers[index], f"backbone.layers.{index}.")
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
        layer.to("meta")
        return outputs

    def _pool(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        norm = self._load(self._model.backbone.decoder.norm, "backbone.norm.")
        pooler = self._load(self._model.pooler, "pooler.")
        outputs = []
        for hidden, batch in zip(states, self._batches, strict=True):
            pooled = pooler(norm(hidden), torch.from_numpy(batch.pool_mask_BS))
            outputs.append(functional.normalize(pooled, dim=-1))
        return outputs

    def _load(self, module: nn.Module, prefix: str) -> nn.Module:
        """Give a meta module its weights, which begin with `prefix`."""
        module = module.to_empty(device="cpu").float().eval()
        for key, parameter in module.named_parameters():
            parameter.data.copy_(torch.from_numpy(self._weights.read_float32(prefix + key)))
        return module

