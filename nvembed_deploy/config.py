"""This file owns the reading of Hugging Face `config.json` files into our `spec` classes.

What a config asks for and this package cannot do is refused here, by name: a silently ignored
key is a wrong embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.spec import (
    BackboneSpec,
    ModelSpec,
    PoolerSpec,
    TextSpec,
    backbone_fault,
    what_fits,
)

_OWN_CONFIG = "use the config.json that came with the weights"
_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
_FAMILIES: dict[str, dict[str, int]] = {
    "mistral": _MISTRAL,
    "llama": {"max_position_embeddings": 2048},
    "bidir_mistral": _MISTRAL,
}
"""What a config of each family means by a key that it leaves out, where families differ.

Source: MistralConfig and LlamaConfig of transformers 5; NV-Embed's own config is a MistralConfig.
"""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist", "copy the complete folder") from None
    except (ValueError, OSError, RecursionError) as error:
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
    _refuse_flags(config, path)
    backbone = backbone_from_config(text_config, path)
    return ModelSpec(
        backbone=backbone,
        pooler=_released_pooler(config, backbone.hidden_size, path),
        text=text_from_config(text_config, path),
        name=_name_of(folder.resolve()),
    )


def _name_of(folder: Path) -> str:
    """Return what a model's folder is called; in the hub's cache models--OWNER--NAME is, above it.

    A folder there is named by its revision: models--OWNER--NAME/snapshots/REVISION.
    """
    kept = folder.parent.parent.name
    is_kept = folder.parent.name == "snapshots" and kept.startswith("models--")
    return kept.rpartition("--")[2] if is_kept else folder.name


def _refuse_flags(config: dict[str, Any], path: Path) -> None:
    for key in ("add_eos", "is_mask_instruction"):
        if config.get(key, True) is not True:
            raise CheckpointError(
                f"{path}: {key} is {config[key]!r}, expected true",
                "a model trained without it needs other text rules than NV-Embed's: not supported",
            )


def _released_pooler(config: dict[str, Any], hidden_size: int, path: Path) -> PoolerSpec:
    pooler = config.get("latent_attention_config") or {}
    if not isinstance(pooler, dict):
        raise CheckpointError(
            f"{path}: latent_attention_config is {pooler!r}, expected an object", _OWN_CONFIG
        )
    for key in ("latent_dim", "hidden_dim"):
        if (got := pooler.get(key, 4096)) != hidden_size:
            raise CheckpointError(
                f"{path}: latent_attention_config.{key} is {got}, expected hidden_size "
                f"{hidden_size}",
                "state the pooler's sizes in latent_attention_config",
            )
    try:
        return PoolerSpec(
            num_latents=_size(pooler, "num_latents_value", 512),
            num_heads=_size(pooler, "num_cross_heads", 8),
            head_width=_size(pooler, "cross_dim_head", 4096),
            feed_width=4 * hidden_size,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: latent_attention_config.{error}", _OWN_CONFIG) from error


def backbone_from_config(config: dict[str, Any], path: Path) -> BackboneSpec:
    """Translate a Mistral/Llama-family config into a spec.

    Raises:
        CheckpointError: another family, or an option that changes the mathematics and is not
            built here (biases, another activation, scaled rotary positions).
    """
    try:
        _refuse_unsupported(config, path)
        spec = _backbone(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", _OWN_CONFIG) from error
    fault = backbone_fault(spec)
    if fault:
        raise CheckpointError(f"{path}: {fault}", _OWN_CONFIG)
    return spec


def _backbone(config: dict[str, Any]) -> BackboneSpec:
    config = {**_FAMILIES[config["model_type"]], **config}
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    return BackboneSpec(
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", heads),
        head_width=_size(config, "head_dim", hidden // heads),
        intermediate_size=_size(config, "intermediate_size"),
        rms_norm_eps=_positive(config, "rms_norm_eps", 1e-6),
        rope_theta=_positive({**config, **_rope(config)}, "rope_theta", 10000.0),
        max_positions=_size(config, "max_position_embeddings"),
    )


def text_from_config(config: dict[str, Any], path: Path) -> TextSpec:
    """Translate BOS and EOS of a decoder's config; padding is EOS, as NV-Embed pads."""
    bos, eos = config.get("bos_token_id", 1), config.get("eos_token_id", 2)
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if any(what_fits(token, 0, low=0) for token in (bos, eos)):
        raise CheckpointError(
            f"{path}: got bos_token_id {bos!r} and eos_token_id {eos!r}, expected two numbers",
            "NV-Embed puts BOS and EOS around each text: state both ids in config.json",
        )
    return TextSpec(bos_id=bos, eos_id=eos, pad_id=eos)


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number of at least 1; null is the default, as Hugging Face reads it."""
    return int(_fitting(config, key, default, like=1))


def _positive(config: dict[str, Any], key: str, default: float) -> float:
    return float(_fitting(config, key, default, like=1.0))


def _fitting(config: dict[str, Any], key: str, default: Any, *, like: float) -> Any:  # noqa: ANN401
    """Return a value, or its default, that can stand for the number `like`.

    Raises:
        ValueError: it cannot.
    """
    value = config.get(key)
    value = default if value is None else value
    expected = what_fits(value, like, 1)
    if expected is not None:
        raise ValueError(f"{key} is {value!r}, expected {expected}")
    return value


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary options: `rope_parameters` since transformers 5, `rope_scaling` before.

    Of a config that has both, transformers takes `rope_scaling` alone.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    options = config.get(key) or {}
    if not isinstance(options, dict):
        raise ValueError(f"{key} is {options!r}, expected an object")  # noqa: TRY004 - one kind
    return options


def _refuse_unsupported(config: dict[str, Any], path: Path) -> None:
    family = config.get("model_type")
    if family not in list(_FAMILIES):  # it may be of any kind
        code = " and needs code from its folder, which is never run" if "auto_map" in config else ""
        raise CheckpointError(
            f"{path}: got model_type {family!r}{code}, expected one of {list(_FAMILIES)}",
            "use a decoder of the Mistral or Llama family",
        )
    rope = _rope(config)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    rotated = {**config, **rope}.get("partial_rotary_factor")
    found = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias", False)), False),
        "mlp_bias": (bool(config.get("mlp_bias", False)), False),
        "rope type": (rope_type, "default"),
        "partial_rotary_factor": (1.0 if rotated is None else rotated, 1.0),
    }
    for key, (got, expected) in found.items():
        if got != expected:
            raise CheckpointError(
                f"{path}: {key} is {got!r}, expected {expected!r}",
                "this option changes the model's mathematics and is not supported: use a base "
                "without it",
            )
