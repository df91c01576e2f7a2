"""This file owns the reading of Hugging Face `config.json` files into our `spec` classes.

What a config asks for and this package cannot do is refused here, by name: a silently ignored
key is a wrong embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, TextSpec

_FAMILIES = ("mistral", "llama", "bidir_mistral")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist", "copy the complete model folder") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON: {error}", "download the file again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: got a JSON {type(data).__name__}, expected an object",
            "download the file again",
        )
    return data


def released_spec(config: dict[str, Any], folder: Path) -> ModelSpec:
    """Translate NV-Embed's released config (nested text_config) into a spec.

    Source: config.json of the released NV-Embed-v2 and its configuration defaults (512 latents,
    8 heads of width 4096). The padding token is EOS, as `add_pad_token` makes it.
    """
    path = folder / "config.json"
    text_config = config.get("text_config")
    if not isinstance(text_config, dict):
        raise CheckpointError(
            f"{path}: text_config is missing", "use the config.json released with the weights"
        )
    backbone = backbone_from_config(text_config, path)
    pooler = config.get("latent_attention_config") or {}
    width = pooler.get("latent_dim", 4096)
    for key, got in (("latent_dim", width), ("hidden_dim", pooler.get("hidden_dim", 4096))):
        if got != backbone.hidden_size:
            raise CheckpointError(
                f"{path}: latent_attention_config.{key} is {got}, expected hidden_size "
                f"{backbone.hidden_size}",
                "state the pooler's sizes in latent_attention_config",
            )
    return ModelSpec(
        backbone=backbone,
        pooler=PoolerSpec(
            num_latents=pooler.get("num_latents_value", 512),
            num_heads=pooler.get("num_cross_heads", 8),
            head_width=pooler.get("cross_dim_head", 4096),
            feed_width=4 * backbone.hidden_size,
        ),
        text=text_from_config(text_config, path),
        name=folder.resolve().name,
    )


def backbone_from_config(config: dict[str, Any], path: Path) -> BackboneSpec:
    """Translate a Mistral/Llama-family config into a spec.

    Raises:
        CheckpointError: another family, or an option that changes the mathematics and is not
            built here (biases, another activation, scaled rotary positions).
    """
    _refuse_unsupported(config, path)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return BackboneSpec(
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or hidden // heads),
            intermediate_size=int(config["intermediate_size"]),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(config),
            max_positions=int(config.get("max_position_embeddings", 2048)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: key {error} is missing or not a number",
            "use the config.json that came with the weights",
        ) from error


def text_from_config(config: dict[str, Any], path: Path) -> TextSpec:
    """Translate BOS and EOS of a decoder's config; padding is EOS, as NV-Embed pads."""
    bos, eos = config.get("bos_token_id", 1), config.get("eos_token_id", 2)
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(bos, int) or not isinstance(eos, int):
        raise CheckpointError(
            f"{path}: got bos_token_id {bos!r} and eos_token_id {eos!r}, expected two numbers",
            "NV-Embed puts BOS and EOS around each text: state both ids in config.json",
        )
    return TextSpec(bos_id=bos, eos_id=eos, pad_id=eos)


def _rope_theta(config: dict[str, Any]) -> float:
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))


def _refuse_unsupported(config: dict[str, Any], path: Path) -> None:
    family = config.get("model_type")
    if family not in _FAMILIES:
        code = " and needs code from its folder, which is never run" if "auto_map" in config else ""
        raise CheckpointError(
            f"{path}: got model_type {family!r}{code}, expected one of {list(_FAMILIES)}",
            "use a decoder of the Mistral or Llama family",
        )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    found = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias", False)), False),
        "mlp_bias": (bool(config.get("mlp_bias", False)), False),
        "rope type": (rope_type, "default"),
        "partial_rotary_factor": (float(config.get("partial_rotary_factor") or 1.0), 1.0),
    }
    for key, (got, expected) in found.items():
        if got != expected:
            raise CheckpointError(
                f"{path}: {key} is {got!r}, expected {expected!r}",
                "this option changes the model's mathematics and is not supported: use a base "
                "without it",
            )
