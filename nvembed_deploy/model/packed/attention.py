"""This file owns attention inside texts that lie one after another.

On a GPU in 16 bit one kernel takes all texts (torch's variable-length flash attention); elsewhere
neighbours of one length go together through the dense one. Both compute no padded token. Shapes: T
tokens, R rows that ask, H heads, G key-value heads, K head width.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

from nvembed_deploy.model.packed.batch import Segments, runs

_WIDEST_HEAD, _HEAD_MULTIPLE, _FIRST_CAPABILITY = 256, 8, (8, 0)
"""Of torch's flash attention (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""


def reads_cuts(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Say whether texts' boundaries are read on the device, as replaying other texts needs."""
    return (
        device.type == "cuda"
        and dtype in {torch.float16, torch.bfloat16}
        and head_width <= _WIDEST_HEAD
        and head_width % _HEAD_MULTIPLE == 0
        and _capability(device) >= _FIRST_CAPABILITY
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def attend(  # noqa: PLR0913 - three tensors and where their texts are
    query_RHK: torch.Tensor,
    key_TGK: torch.Tensor,
    value_TGK: torch.Tensor,
    *,
    queries: Segments,
    keys: Segments,
    is_causal: bool = False,
) -> torch.Tensor:
    """Return mixed_RHK: each row attends to all tokens of its own text.

    `is_causal` asks for as many queries as keys, and drops what is right of each.
    """
    is_flash = reads_cuts(query_RHK.device, query_RHK.dtype, query_RHK.shape[-1])
    kernel = _flash if is_flash else _by_runs
    return kernel(query_RHK, key_TGK, value_TGK, queries, keys, is_causal)


def _flash(  # noqa: PLR0913, PLR0917 - as above
    query_RHK: torch.Tensor,
    key_TGK: torch.Tensor,
    value_TGK: torch.Tensor,
    queries: Segments,
    keys: Segments,
    is_causal: bool,
) -> torch.Tensor:
    """Call the operator below torch.nn.attention.varlen.

    That module makes a tensor that only training reads, a kernel in each layer, and refuses grouped
    heads before torch 2.13, which the operator takes.
    """
    mixed_RHK, *_ = torch.ops.aten._flash_attention_forward(
        query_RHK,
        key_TGK,
        value_TGK,
        queries.cuts,
        keys.cuts,
        max(queries.longest, 2),  # of one query each it takes for granted that no text has none
        keys.longest,
        0.0,  # dropout
        is_causal,
        return_debug_mask=False,
        window_size_left=-1,
        window_size_right=0 if is_causal else -1,
    )
    assert isinstance(mixed_RHK, torch.Tensor)
    return mixed_RHK


def _by_runs(  # noqa: PLR0913, PLR0917 - as above
    query_RHK: torch.Tensor,
    key_TGK: torch.Tensor,
    value_TGK: torch.Tensor,
    queries: Segments,
    keys: Segments,
    is_causal: bool,
) -> torch.Tensor:
    mixed_RHK = torch.empty_like(query_RHK)
    row = token = 0
    for run in runs(queries, keys):
        rows = slice(row, row := row + run.num_texts * run.num_queries)
        tokens = slice(token, token := token + run.num_texts * run.num_keys)
        if run.num_queries == 0:
            continue
        query, key, value = (
            x.view(run.num_texts, -1, *x.shape[1:]).transpose(1, 2)
            for x in (query_RHK[rows], key_TGK[tokens], value_TGK[tokens])
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=True
        )
        mixed_RHK[rows] = mixed.transpose(1, 2).flatten(0, 1)
    return mixed_RHK
