"""This file owns the arithmetic that a text needs: the numerator of model FLOPs utilisation.

Counted is the least known to give the result, whoever computes: padding, latents projected again
for each text or the worse form of the pooler earn nobody anything. Norms, softmax and embedding
look-ups are left out, as is usual (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable

from nvembed_deploy.spec import BackboneSpec, ModelSpec, Pooling


def model_flops(spec: ModelSpec, lengths: Iterable[int]) -> float:
    """Return the floating-point operations of embedding texts of `lengths` tokens each.

    A product of [m, k] and [k, n] is 2mkn; a causal backbone is counted like a bidirectional one.
    """
    per_token, per_square, per_text = _backbone(spec.backbone)
    pooler = _pooler(spec)
    per_token, per_square, per_text = (
        a + b for a, b in zip((per_token, per_square, per_text), pooler, strict=True)
    )
    return float(sum(per_token * n + per_square * n * n + per_text for n in lengths))


def _backbone(spec: BackboneSpec) -> tuple[float, float, float]:
    """Return FLOPs by token, by pair of tokens and by text."""
    query = spec.num_heads * spec.head_width
    key_value = 2 * spec.num_kv_heads * spec.head_width
    attention = spec.hidden_size * (2 * query + key_value)
    feed_forward = 3 * spec.hidden_size * spec.intermediate_size
    return 2 * spec.num_layers * (attention + feed_forward), 4 * spec.num_layers * query, 0


def _pooler(spec: ModelSpec) -> tuple[float, float, float]:
    pooler, hidden = spec.pooler, spec.backbone.hidden_size
    if not pooler.pooling.has_weights:
        return 0, 0, 0
    inner = pooler.num_heads * pooler.head_width
    up, down = 4 * hidden * pooler.feed_width, 2 * hidden * pooler.feed_width
    if pooler.pooling is Pooling.SELF_ATTENTION:
        return 8 * hidden * inner + up, 4 * inner, down
    faithful = 4 * hidden * inner + 4 * inner * pooler.num_latents
    folded = 4 * hidden * pooler.num_heads * pooler.num_latents
    return min(faithful, folded) + up, 0, down
