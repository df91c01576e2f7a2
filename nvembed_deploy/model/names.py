"""This file owns the names of tensors: ours, and NV-Embed's released keys, translated both ways.

Ours are `backbone.*` (the decoder, with Hugging Face's tails) and `pooler.*`.
"""

from __future__ import annotations

from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, Pooling

BACKBONE = "backbone."
POOLER = "pooler."

_RELEASED_BACKBONE = "embedding_model."
_RELEASED_POOLER = "latent_attention_model."
_BLOCKS = "cross_attend_blocks."
_POOLER_TAILS = {
    "latents": "latents",
    "query.weight": _BLOCKS + "0.fn.to_q.weight",
    "key_value.weight": _BLOCKS + "0.fn.to_kv.weight",
    "output.weight": _BLOCKS + "0.fn.to_out.weight",
    "query_norm.weight": _BLOCKS + "0.norm.weight",
    "query_norm.bias": _BLOCKS + "0.norm.bias",
    "latent_norm.weight": _BLOCKS + "0.norm_context.weight",
    "latent_norm.bias": _BLOCKS + "0.norm_context.bias",
    "feed_norm.weight": _BLOCKS + "1.norm.weight",
    "feed_norm.bias": _BLOCKS + "1.norm.bias",
    "feed_up.weight": _BLOCKS + "1.fn.net.0.weight",
    "feed_up.bias": _BLOCKS + "1.fn.net.0.bias",
    "feed_down.weight": _BLOCKS + "1.fn.net.2.weight",
    "feed_down.bias": _BLOCKS + "1.fn.net.2.bias",
}
_OUR_TAILS = {released: ours for ours, released in _POOLER_TAILS.items()}


def released_name(name: str) -> str:
    """Translate one of our names into NV-Embed's released key."""
    if name.startswith(BACKBONE):
        return _RELEASED_BACKBONE + name.removeprefix(BACKBONE)
    return _RELEASED_POOLER + _POOLER_TAILS[name.removeprefix(POOLER)]


def our_name(key: str) -> str | None:
    """Translate a key of a released, base or pooler file into our name; None if it is neither.

    Accepted beside the released keys: a base decoder's (`model.layers...` or `layers...`) and a
    pooler's without its prefix.
    """
    tail = key.removeprefix(_RELEASED_POOLER)
    if tail in _OUR_TAILS:
        return POOLER + _OUR_TAILS[tail]
    for prefix in (_RELEASED_BACKBONE, "model."):
        if key.startswith(prefix):
            return BACKBONE + key.removeprefix(prefix)
    if key.startswith(("layers.", "embed_tokens.", "norm.")):
        return BACKBONE + key
    return None


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """List every tensor of the model, in the order of the computation, with its shape."""
    return {**backbone_shapes(spec.backbone), **pooler_shapes(spec.pooler, spec.backbone)}


def backbone_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """List the decoder's tensors: linears are [out, in]."""
    shapes: dict[str, tuple[int, ...]] = {
        BACKBONE + "embed_tokens.weight": (spec.vocab_size, spec.hidden_size)
    }
    for layer in range(spec.num_layers):
        for tail, shape in layer_shapes(spec).items():
            shapes[f"{BACKBONE}layers.{layer}.{tail}"] = shape
    shapes[BACKBONE + "norm.weight"] = (spec.hidden_size,)
    return shapes


def layer_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """List one decoder layer's tensors, by the tail of their names."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_width, spec.num_kv_heads * spec.head_width
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }


def pooler_shapes(spec: PoolerSpec, backbone: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """List the pooler's tensors: no latents for self-attention, nothing for mean and EOS."""
    if not spec.pooling.has_weights:
        return {}
    hidden, inner = backbone.hidden_size, spec.num_heads * spec.head_width
    has_latents = spec.pooling is Pooling.LATENT
    vectors = ("query_norm", *(("latent_norm",) if has_latents else ()), "feed_norm")
    return {
        **({POOLER + "latents": (spec.num_latents, hidden)} if has_latents else {}),
        POOLER + "query.weight": (inner, hidden),
        POOLER + "key_value.weight": (2 * inner, hidden),
        POOLER + "output.weight": (hidden, inner),
        **{f"{POOLER}{v}.{part}": (hidden,) for v in vectors for part in ("weight", "bias")},
        POOLER + "feed_up.weight": (2 * spec.feed_width, hidden),
        POOLER + "feed_up.bias": (2 * spec.feed_width,),
        POOLER + "feed_down.weight": (hidden, spec.feed_width),
        POOLER + "feed_down.bias": (hidden,),
    }
