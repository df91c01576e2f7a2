"""This file owns a second implementation of NV-Embed, written from the formulas, for comparison.

The decoder is transformers' own MistralModel with an explicit padding mask; the pooler is plain
torch arithmetic (arXiv 2405.17428 section 3.1), with nothing of the package's model code in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from transformers import MistralConfig, MistralModel
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from nvembed_deploy.spec import ModelSpec


def embed(
    spec: ModelSpec,
    weights: dict[str, np.ndarray],
    inputs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return unit-length embeddings [B, D] of (input ids, attention mask, pool mask)."""
    return embed_all(spec, weights, [inputs])


@torch.inference_mode()
def embed_all(
    spec: ModelSpec,
    weights: dict[str, np.ndarray],
    batches: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Return the unit-length embeddings of batch after batch, [N, D].

    All of it is float64, but for the rotary angles, which are float32 by definition.
    """
    tensors = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    model = decoder(spec, tensors)
    pooled = []
    for batch in batches:
        input_ids, attention_mask, pool_mask = (torch.from_numpy(array) for array in batch)
        hidden = decoder_states(model, input_ids, attention_mask)
        for states, mask in zip(hidden, pool_mask, strict=True):
            pooled.append(latent_states(spec, tensors, states)[mask.bool()].mean(0))
    stacked = torch.stack(pooled)
    return (stacked / stacked.norm(dim=1, keepdim=True)).numpy()


def decoder(spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> MistralModel:
    """Return transformers' decoder in float64 with the weights' `backbone.*`."""
    backbone = spec.backbone
    config = MistralConfig(
        vocab_size=backbone.vocab_size,
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        num_key_value_heads=backbone.num_kv_heads,
        head_dim=backbone.head_width,
        intermediate_size=backbone.intermediate_size,
        rms_norm_eps=backbone.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": backbone.rope_theta},
        max_position_embeddings=backbone.max_positions,
        sliding_window=None,
    )
    config._attn_implementation = "eager"
    model = MistralModel(config).double().eval()
    for module in model.modules():
        if isinstance(module, MistralRMSNorm):  # its own forward rounds to float32
            module.forward = partial(rms_norm, module.weight, eps=backbone.rms_norm_eps)
    named = {
        n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")
    }
    model.load_state_dict(named, strict=True)
    return model


def decoder_states(
    model: MistralModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return the decoder's normed states [B, S, D], every token seeing every kept one."""
    length = input_ids.shape[1]
    keep = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    mask = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -1e300)
    states: torch.Tensor = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    return states


def rms_norm(weight: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight over the last axis."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight


def latent_states(
    spec: ModelSpec, tensors: dict[str, torch.Tensor], states: torch.Tensor
) -> torch.Tensor:
    """Return the pooler's token states [S, D] of one text's decoder states [S, D]."""
    p = {n.removeprefix("pooler."): t for n, t in tensors.items() if n.startswith("pooler.")}
    pooler = spec.pooler
    query = norm(states, p, "query_norm") @ p["query.weight"].T
    context = norm(p["latents"], p, "latent_norm") @ p["key_value.weight"].T
    key, value = context[:, : context.shape[1] // 2], context[:, context.shape[1] // 2 :]
    mixed = []
    for head in range(pooler.num_heads):
        part = slice(head * pooler.head_width, (head + 1) * pooler.head_width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(pooler.head_width)
        mixed.append(torch.exp(scores - scores.logsumexp(1, keepdim=True)) @ value[:, part])
    attended = torch.cat(mixed, 1) @ p["output.weight"].T + states
    both = norm(attended, p, "feed_norm") @ p["feed_up.weight"].T + p["feed_up.bias"]
    left, right = both[:, : pooler.feed_width], both[:, pooler.feed_width :]
    gelu = right * 0.5 * (1 + torch.erf(right / math.sqrt(2)))
    return (left * gelu) @ p["feed_down.weight"].T + p["feed_down.bias"] + attended


def norm(x: torch.Tensor, p: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Return the layer norm of the last axis, eps 1e-5."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]
