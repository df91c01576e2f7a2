"""This file owns the tests' tiny models: deterministic weights, written as real checkpoints."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nvembed_deploy.model.names import expected_shapes, released_name
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, TextSpec

TINY = ModelSpec(
    backbone=BackboneSpec(
        vocab_size=320,
        hidden_size=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_width=16,
        intermediate_size=96,
        max_positions=8192,
    ),
    pooler=PoolerSpec(num_latents=12, num_heads=2, head_width=64, feed_width=256),
    text=TextSpec(bos_id=1, eos_id=2, pad_id=2),
    name="tiny",
)
"""Head width of the pooler is the hidden size and the feed-forward is 4x, as NV-Embed's are."""

UNLIKE = replace(
    TINY,
    backbone=replace(
        TINY.backbone,
        num_heads=6,
        num_kv_heads=3,
        head_width=10,
        rms_norm_eps=0.03,
        rope_theta=50.0,
    ),
    pooler=PoolerSpec(num_latents=7, num_heads=3, head_width=20, feed_width=40),
)
"""No number is another's, and none a default of transformers or of ours."""

FUSABLE = replace(
    TINY,
    backbone=replace(
        TINY.backbone,
        hidden_size=128,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_width=64,
        intermediate_size=256,
    ),
    pooler=PoolerSpec(num_latents=16, num_heads=2, head_width=128, feed_width=512),
)
"""Heads of 64: as narrow as trained models have them, and as TensorRT's kernels take them."""


def with_layers(spec: ModelSpec, num_layers: int) -> ModelSpec:
    """Return `spec` with another depth."""
    return replace(spec, backbone=replace(spec.backbone, num_layers=num_layers))


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return deterministic float32 values: a ramp through a sine, another phase for each name."""
    count = int(np.prod(shape))
    phase = zlib.crc32(name.encode()) % 1000
    wave = np.sin(np.arange(count, dtype=np.float64) * 12.9898 + phase) * 43758.5453
    uniform = (wave - np.floor(wave)) * 2 - 1
    if name.endswith("norm.weight"):
        uniform = 1 + 0.2 * uniform
    elif len(shape) == 1:
        uniform = 0.1 * uniform
    elif not name.endswith(("embed_tokens.weight", "latents")):
        uniform = uniform * (3.0 / shape[1]) ** 0.5
    return uniform.reshape(shape).astype(np.float32)


def weights(spec: ModelSpec = TINY) -> dict[str, np.ndarray]:
    """Return all tensors of a tiny model under our names, float32."""
    return {name: values(name, shape) for name, shape in expected_shapes(spec).items()}


def text_config(spec: ModelSpec) -> dict[str, object]:
    """Return the decoder's config as Hugging Face writes it."""
    backbone = spec.backbone
    return {
        "model_type": "mistral",
        "vocab_size": backbone.vocab_size,
        "hidden_size": backbone.hidden_size,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "num_key_value_heads": backbone.num_kv_heads,
        "head_dim": backbone.head_width,
        "intermediate_size": backbone.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": backbone.rms_norm_eps,
        "rope_theta": backbone.rope_theta,
        "max_position_embeddings": backbone.max_positions,
        "sliding_window": 4096,
        "bos_token_id": spec.text.bos_id,
        "eos_token_id": spec.text.eos_id,
    }


def write_released(folder: Path, spec: ModelSpec = TINY, num_shards: int = 2) -> Path:
    """Write a checkpoint in NV-Embed's released layout, float16, sharded."""
    folder.mkdir(parents=True, exist_ok=True)
    pooler = spec.pooler
    config = {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
        "hidden_size": spec.backbone.hidden_size,
        "text_config": {**text_config(spec), "model_type": "bidir_mistral"},
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": pooler.num_latents,
            "num_cross_heads": pooler.num_heads,
            "cross_dim_head": pooler.head_width,
            "hidden_dim": spec.backbone.hidden_size,
            "latent_dim": spec.backbone.hidden_size,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {released_name(n): a.astype(np.float16) for n, a in weights(spec).items()}
    keys = list(tensors)
    weight_map = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = keys[shard::num_shards]
        save_file({key: tensors[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_base(folder: Path, spec: ModelSpec = TINY) -> Path:
    """Write the plain decoder, as a Mistral folder with one float32 file and a language head."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(text_config(spec)))
    tensors = {
        "model." + name.removeprefix("backbone."): array
        for name, array in weights(spec).items()
        if name.startswith("backbone.")
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_pooler(path: Path, spec: ModelSpec = TINY) -> Path:
    """Write the pooler alone, float32, under its released keys."""
    named = weights(spec).items()
    save_file({released_name(n): a for n, a in named if n.startswith("pooler.")}, path)
    return path


def write_tokenizer(path: Path) -> Path:
    """Write a byte-level tokenizer: <unk> 0, <s> 1, </s> 2, a few merges; 320 ids at most."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "t"), ("Ġ", "a"), ("e", "r"), ("o", "n")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    vocab = {piece: index + 3 for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab={"<unk>": 0, "<s>": 1, "</s>": 2, **vocab}, merges=merges, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(path))
    return path
