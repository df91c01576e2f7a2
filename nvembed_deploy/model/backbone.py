"""This file owns the bidirectional decoder: transformers' MistralModel without its causal mask.

Causality could come back by two doors, both shut here: `sliding_window` is None in the config,
and every forward passes a 4-D mask that holds padding only, which transformers uses as it is (a
missing or 2-D mask would be made causal). Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MistralConfig, MistralModel

from nvembed_deploy.spec import BackboneSpec


class Backbone(nn.Module):
    """Mistral/Llama-family decoder stack in which every token attends to every kept token."""

    def __init__(self, spec: BackboneSpec) -> None:
        """Build the module with uninitialised weights of the default dtype."""
        super().__init__()
        self.spec = spec
        self.decoder = MistralModel(_config(spec))
        for layer in self.decoder.layers:
            attention_layer: Any = layer.self_attn  # torch types a submodule as Tensor | Module
            attention_layer.is_causal = False

    def forward(self, input_ids_BS: torch.Tensor, attention_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return hidden_BSD, the states after the final norm.

        Args:
            input_ids_BS: int64 [B, S].
            attention_mask_BS: [B, S], nonzero = may be attended; each row keeps one at least.
        """
        mask = padding_mask(attention_mask_BS, self.decoder.dtype)
        output = self.decoder(
            input_ids=input_ids_BS,
            attention_mask=causal_mask(mask) if self.spec.causal else mask,
            use_cache=False,
        )
        hidden_BSD: torch.Tensor = output.last_hidden_state
        return hidden_BSD


def padding_mask(attention_mask_BS: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask [B, 1, S, S] (a view over queries): 0 to keep, the minimum to drop.

    Source: nv-embed's own mask is additive with finfo.min on padded keys, for all queries.
    """
    batch, length = attention_mask_BS.shape
    dropped = (attention_mask_BS == 0).to(dtype) * torch.finfo(dtype).min
    return dropped[:, None, None, :].expand(batch, 1, length, length)


def causal_mask(mask_B1SS: torch.Tensor) -> torch.Tensor:
    """Drop what is right of each token too: the paper's ablation (arXiv 2405.17428, table 2)."""
    lowest = torch.finfo(mask_B1SS.dtype).min
    return mask_B1SS.masked_fill(torch.ones_like(mask_B1SS[0, 0]).triu(1).bool(), lowest)


def _config(spec: BackboneSpec) -> MistralConfig:
    config = MistralConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_width,
        intermediate_size=spec.intermediate_size,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        max_position_embeddings=spec.max_positions,
        sliding_window=None,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    return config
