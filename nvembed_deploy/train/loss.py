"""This file owns the contrastive loss. Shapes: Q queries, P passages, D width."""

from __future__ import annotations

import torch
from torch.nn import functional


def info_nce(
    query_QD: torch.Tensor,
    passage_PD: torch.Tensor,
    allowed_QP: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return the mean over queries of -log softmax(cosine / temperature) at their positives.

    Source: InfoNCE (arXiv 1807.03748, eq. 4) as used in arXiv 2405.17428, section 5.1.

    In float32 also where the model is not: at a temperature of 0.02 a bfloat16 cosine is a logit in
    steps of 0.1 to 0.2.

    Args:
        query_QD: of length 1, float32.
        passage_PD: of length 1; passage q is query q's positive.
        allowed_QP: bool, what each query is compared with; its positive always is.
        temperature: divides the cosines.
    """
    with torch.autocast(query_QD.device.type, enabled=False):
        logits_QP = query_QD @ passage_PD.T / temperature
    logits_QP = logits_QP.masked_fill(~allowed_QP, float("-inf"))
    target_Q = torch.arange(len(query_QD), device=query_QD.device)
    return functional.cross_entropy(logits_QP, target_Q)


def allowed_passages(
    owner_P: torch.Tensor, keep_QP: torch.Tensor, *, in_batch: bool
) -> torch.Tensor:
    """Return which passages each query is compared with, bool [Q, P].

    Its own positive and hard negatives; with `in_batch` everyone else's too, save false negatives
    (`keep_QP` is false there).
    """
    if in_batch:
        return keep_QP
    own_QP = owner_P[None, :] == torch.arange(len(keep_QP), device=owner_P.device)[:, None]
    return keep_QP & own_QP
