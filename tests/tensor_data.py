"""This file owns the tensor files that tests write, safetensors and GGUF, and their comparison."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import gguf
import numpy as np

from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.tensordtype import DTYPES
from nvembed_deploy.tensorwriter import SafetensorsWriter
from tests.factories import TINY, weights


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bit pattern: files must carry NaN and -0 as they are."""
    target = DTYPES[dtype]
    count = int(np.prod(shape, dtype=np.int64)) * target.itemsize
    high = 2 if dtype == "BOOL" else 256
    data = np.random.default_rng(seed).integers(0, high, count, np.uint8)
    return data.view(target).reshape(shape)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def write(path: Path, tensors: dict[str, np.ndarray], **options: int) -> tuple[int, str]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = [(name, names[a.dtype], a.shape) for name, a in tensors.items()]
    with SafetensorsWriter(path, entries, {"made": "by test"}, **options) as writer:
        for name, array in tensors.items():
            writer.write(name, np.array_split(array, 3) if array.ndim else [array])
        return writer.close()


GGUF_NAMES = {
    "backbone.embed_tokens": "token_embd",
    "backbone.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "backbone.layers": "blk",
}
"""Our names and llama.cpp's, part by part."""


def gguf_metadata(spec: ModelSpec = TINY) -> dict[str, object]:
    """Return what llama.cpp writes about a Llama- or Mistral-family decoder and its tokenizer."""
    backbone = spec.backbone
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.vocab_size": backbone.vocab_size,
        "llama.context_length": backbone.max_positions,
        "llama.embedding_length": backbone.hidden_size,
        "llama.block_count": backbone.num_layers,
        "llama.feed_forward_length": backbone.intermediate_size,
        "llama.attention.head_count": backbone.num_heads,
        "llama.attention.head_count_kv": backbone.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": backbone.rms_norm_eps,
        "llama.rope.freq_base": backbone.rope_theta,
        "llama.rope.dimension_count": backbone.head_width,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(backbone.vocab_size)],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": spec.text.bos_id,
        "tokenizer.ggml.eos_token_id": spec.text.eos_id,
    }


def gguf_tensors(spec: ModelSpec = TINY) -> dict[str, np.ndarray]:
    """Return the tiny decoder's tensors as llama.cpp stores them, q and k interleaved.

    Source of the interleaving: LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py.
    """
    num_heads = {"attn_q": spec.backbone.num_heads, "attn_k": spec.backbone.num_kv_heads}
    tensors = {}
    for name, array in weights(spec).items():
        if not name.startswith("backbone."):
            continue
        stored = reduce(lambda n, pair: n.replace(*pair), GGUF_NAMES.items(), name)
        heads = num_heads.get(stored.split(".")[-2])
        if heads:
            halves = array.reshape(heads, 2, -1, array.shape[1])
            tensors[stored] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        else:
            tensors[stored] = array
    return tensors


def write_gguf(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Mapping[str, np.ndarray] | None = None,
    quantization: str = "F32",
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """Write a GGUF file; matrices are quantised, vectors stay float32, bytes are taken as they are.

    Keys set to None are left out.
    """
    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]), endianess=endianess)
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    for name, array in (tensors or {}).items():
        if array.dtype == np.uint8:
            writer.add_tensor(name, array, raw_dtype=kind)
        elif array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Add a value of the type that llama.cpp gives to it."""
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)
