"""Tests of attention inside texts that lie one after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.model.packed import attention
from nvembed_deploy.model.packed.attention import _flash, attend, reads_cuts
from nvembed_deploy.model.packed.batch import Segments

KEYS = (4, 4, 1, 7)


def plain(query_RHK, key_TGK, value_TGK, *, num_queries, causal):
    """Softmax of scaled products, text by text and head by head, in float64."""
    out, row, token = [], 0, 0
    group = query_RHK.shape[1] // key_TGK.shape[1]
    for asked, size in zip(num_queries, KEYS, strict=True):
        query = query_RHK[row : (row := row + asked)].double()
        kept = slice(token, token := token + size)
        key, value = (x[kept].double().repeat_interleave(group, 1) for x in (key_TGK, value_TGK))
        scores_HRT = torch.einsum("rhk,thk->hrt", query, key) / query.shape[-1] ** 0.5
        if causal:
            scores_HRT = scores_HRT.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf)
        out.append(torch.einsum("hrt,thk->rhk", scores_HRT.softmax(-1), value))
    return torch.cat(out).float()


@pytest.mark.parametrize(
    ("num_queries", "causal"), [(KEYS, False), (KEYS, True), ((2, 1, 0, 7), False)]
)
def test_it_is_plain_attention(num_queries, causal):
    torch.manual_seed(0)
    query = torch.randn(sum(num_queries), 6, 8)
    key, value = torch.randn(2, sum(KEYS), 2, 8)
    segments = {
        "queries": Segments.of(np.array(num_queries)),
        "keys": Segments.of(np.array(KEYS)),
    }
    mixed = attend(query, key, value, **segments, is_causal=causal)
    expected = plain(query, key, value, num_queries=num_queries, causal=causal)
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gpus_operator_takes_what_it_is_given(causal):
    """On the meta device, which checks a call and computes nothing."""
    segments = Segments.of(np.array(KEYS)).to(torch.device("meta"))
    query, key = (
        torch.empty(sum(KEYS), heads, 128, dtype=torch.bfloat16, device="meta") for heads in (8, 2)
    )
    mixed = _flash(query, key, key, segments, segments, causal)
    assert mixed.shape == query.shape
    assert mixed.dtype is torch.bfloat16


@pytest.mark.parametrize("lengths", [(1, 0, 1, 1), (0, 0, 0, 0)])
def test_the_gpus_operator_is_not_told_that_each_text_has_one_query(monkeypatch, lengths):
    """With one it reshapes queries to [B, 1, H, K] and reads no boundaries; with none it fails."""
    longest: list[int] = []

    def operator(query, *others, **_):
        longest.append(others[4])
        return (query,)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    queries, keys = Segments.of(np.array(lengths)), Segments.of(np.array(KEYS))
    query, key = torch.zeros(sum(lengths), 8, 8), torch.zeros(sum(KEYS), 2, 8)
    assert _flash(query, key, key, queries, keys, False).shape == query.shape
    assert longest[0] > 1


@pytest.mark.parametrize(
    ("dtype", "head_width", "capability", "is_read"),
    [
        (torch.float16, 128, (8, 0), True),
        (torch.bfloat16, 256, (12, 0), True),
        (torch.float32, 128, (9, 0), False),
        (torch.float16, 264, (9, 0), False),  # wider than the kernel
        (torch.float16, 100, (9, 0), False),  # not a multiple of 8
        (torch.float16, 128, (7, 5), False),  # a T4
    ],
)
def test_only_the_gpus_kernel_reads_boundaries_on_the_device(
    monkeypatch, dtype, head_width, capability, is_read
):
    """Where another kernel runs, a recording would freeze the lengths of its texts."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    attention._capability.cache_clear()
    assert reads_cuts(torch.device("cuda:1"), dtype, head_width) is is_read
    assert not reads_cuts(torch.device("cpu"), dtype, head_width)
    attention._capability.cache_clear()
