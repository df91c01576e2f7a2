"""This file owns the Hugging Face files of an artifact: the names that other tools look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.spec import ModelSpec


def write_hf_files(folder: Path, spec: ModelSpec) -> None:
    """Write config.json and tokenizer_config.json beside the folder's tokenizer.json."""
    _write_json(folder / LAYOUT.config, _config(spec))
    _write_json(
        folder / "tokenizer_config.json", _tokenizer_config(spec, folder / LAYOUT.tokenizer)
    )


def _config(spec: ModelSpec) -> dict[str, Any]:
    backbone = spec.backbone
    return {
        "architectures": ["MistralModel"],
        "model_type": "mistral",
        "vocab_size": backbone.vocab_size,
        "hidden_size": backbone.hidden_size,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "num_key_value_heads": backbone.num_kv_heads,
        "head_dim": backbone.head_width,
        "intermediate_size": backbone.intermediate_size,
        "rms_norm_eps": backbone.rms_norm_eps,
        "rope_theta": backbone.rope_theta,
        "max_position_embeddings": backbone.max_positions,
        "sliding_window": None,
        "bos_token_id": spec.text.bos_id,
        "eos_token_id": spec.text.eos_id,
        "pad_token_id": spec.text.pad_id,
        "use_cache": False,
    }


def _tokenizer_config(spec: ModelSpec, tokenizer: Path) -> dict[str, Any]:
    """Say which tokens begin, end and pad a text: tokenizer.json holds ids, not their roles."""
    raw = tokenizers.Tokenizer.from_file(str(tokenizer))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": raw.id_to_token(spec.text.bos_id),
        "eos_token": raw.id_to_token(spec.text.eos_id),
        "pad_token": raw.id_to_token(spec.text.pad_id),
        "padding_side": "right",
        "model_max_length": spec.text.max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
