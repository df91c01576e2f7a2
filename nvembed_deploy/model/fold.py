"""This file owns the exact folding of the latent pooler's constants (numpy, no torch).

The pooler's keys and values come from the latents, which are weights; so per head h

    softmax(LN(X) Wq_h^T K_h^T * scale) V_h Wo_h^T  =  softmax(LN(X) A_h) B_h,
    A_h = scale * Wq_h^T K_h^T  [D, L],    B_h = V_h Wo_h^T  [L, D],

and the sum over heads is one product with the stacked A [D, H*L] and B [H*L, D]. NV-Embed's
539M parameters of cross-attention become 33.6M, exactly. Sizes: D hidden, H heads, K head width,
L latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvembed_deploy.model.weights import Weights


@dataclass(frozen=True)
class FoldedAttention:
    """The pooler's cross-attention as two matrices, both float32."""

    scores_DX: np.ndarray
    """[D, H*L]: normalised states to the scores of every head and latent."""
    values_XD: np.ndarray
    """[H*L, D]: attention over latents to the output."""


def fold_attention(weights: Weights) -> FoldedAttention:
    """Fold queries, keys, values and output of the latent pooler, head by head.

    Reads a head's rows at a time: memory is a few [K, D] float32 blocks, not the pooler.
    Source: arXiv 2405.17428 section 3.1 for the pooler; the algebra is in this file's docstring.
    """
    spec, hidden = weights.spec.pooler, weights.spec.backbone.hidden_size
    inner = spec.num_heads * spec.head_width
    context_LD = _layer_norm(weights)
    scores_DX = np.empty((hidden, spec.num_heads * spec.num_latents), np.float32)
    heads = [slice(h * spec.head_width, (h + 1) * spec.head_width) for h in range(spec.num_heads)]
    scale = np.float32(spec.head_width**-0.5)
    values = []
    for head, rows in enumerate(heads):
        columns = slice(head * spec.num_latents, (head + 1) * spec.num_latents)
        key_LK = context_LD @ weights.read_float32("pooler.key_value.weight", rows).T
        query_KD = weights.read_float32("pooler.query.weight", rows)
        scores_DX[:, columns] = query_KD.T @ (key_LK.T * scale)
        value_rows = slice(inner + rows.start, inner + rows.stop)
        values.append(context_LD @ weights.read_float32("pooler.key_value.weight", value_rows).T)
    return FoldedAttention(scores_DX, _fold_output(weights, values, heads))


def _fold_output(weights: Weights, values: list[np.ndarray], heads: list[slice]) -> np.ndarray:
    num_latents, hidden = values[0].shape[0], weights.spec.backbone.hidden_size
    values_XD = np.empty((len(heads) * num_latents, hidden), np.float32)
    for block in weights.row_blocks("pooler.output.weight"):
        output_BI = weights.read_float32("pooler.output.weight", block)
        for head, columns in enumerate(heads):
            rows = slice(head * num_latents, (head + 1) * num_latents)
            values_XD[rows, block] = values[head] @ output_BI[:, columns].T
    return values_XD


def _layer_norm(weights: Weights) -> np.ndarray:
    latents_LD = weights.read_float32("pooler.latents").astype(np.float64)
    centred = latents_LD - latents_LD.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    normal = centred / np.sqrt(variance + weights.spec.pooler.layer_norm_eps)
    gain, bias = (weights.read_float32(f"pooler.latent_norm.{p}") for p in ("weight", "bias"))
    context_LD: np.ndarray = (normal * gain + bias).astype(np.float32)
    return context_LD
