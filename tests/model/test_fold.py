"""Tests of nvembed_deploy/model/fold.py."""

from __future__ import annotations

import numpy as np

from nvembed_deploy.model.fold import fold_attention
from nvembed_deploy.model.weights import Weights
from tests import factories


def test_folded_matrices_are_the_product_of_the_trained_ones(tiny_weights: Weights) -> None:
    spec, w = (
        factories.TINY.pooler,
        {n: a.astype(np.float64) for n, a in factories.weights().items()},
    )
    latents = w["pooler.latents"]
    normal = (latents - latents.mean(1, keepdims=True)) / np.sqrt(
        latents.var(1, keepdims=True) + 1e-5
    )
    context = normal * w["pooler.latent_norm.weight"] + w["pooler.latent_norm.bias"]
    key, value = np.split(context @ w["pooler.key_value.weight"].T, 2, axis=1)
    folded = fold_attention(tiny_weights)
    for head in range(spec.num_heads):
        part = slice(head * spec.head_width, (head + 1) * spec.head_width)
        place = slice(head * spec.num_latents, (head + 1) * spec.num_latents)
        scores = w["pooler.query.weight"][part].T @ key[:, part].T / spec.head_width**0.5
        values = value[:, part] @ w["pooler.output.weight"][:, part].T
        assert np.allclose(folded.scores_DX[:, place], scores, atol=1e-5)
        assert np.allclose(folded.values_XD[place], values, atol=1e-5)


def test_folding_nv_embed_leaves_33_6_of_539_million_parameters() -> None:
    hidden, heads, latents, width = 4096, 8, 512, 4096
    trained = heads * width * hidden * 4 + latents * hidden
    folded = 2 * hidden * heads * latents
    assert (trained, folded) == (538_968_064, 33_554_432)
