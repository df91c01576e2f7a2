"""Tests of nvembed_deploy/config.py: what a config.json means, and what cannot be built."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig

from nvembed_deploy.config import (
    backbone_from_config,
    read_json,
    released_spec,
    text_from_config,
)
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.spec import BackboneSpec, PoolerSpec
from tests import factories

PATH = Path("model/config.json")
RELEASED_V2 = {
    "model_type": "nvembed",
    "text_config": {
        "model_type": "bidir_mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "latent_attention_config": {"model_type": "latent_attention"},
}
"""Keys of the released config that shape the model, its defaults left out as there."""


def tiny(**changes: Any) -> dict[str, Any]:
    return {**factories.text_config(factories.TINY), **changes}


def test_the_released_config_is_our_defaults() -> None:
    spec = released_spec(RELEASED_V2, Path("NV-Embed-v2"))
    assert (spec.name, spec.backbone, spec.pooler) == ("NV-Embed-v2", BackboneSpec(), PoolerSpec())
    assert (spec.text.bos_id, spec.text.eos_id, spec.text.pad_id) == (1, 2, 2)


def test_a_plain_decoder_reads_as_it_was_written() -> None:
    assert backbone_from_config(tiny(), PATH) == factories.TINY.backbone


@pytest.mark.parametrize(
    ("family", "kind"),
    [("mistral", MistralConfig), ("bidir_mistral", MistralConfig), ("llama", LlamaConfig)],
)
def test_what_is_not_stated_is_what_transformers_assumes(family: str, kind: Any) -> None:
    config = tiny(model_type=family, num_attention_heads=16)
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"):
        del config[key]
    del config["max_position_embeddings"]
    spec, theirs = backbone_from_config(config, PATH), kind.from_dict(config)
    assert (spec.num_kv_heads, spec.head_width) == (theirs.num_key_value_heads, theirs.head_dim)
    assert spec.max_positions == theirs.max_position_embeddings
    assert (spec.rms_norm_eps, spec.rope_theta) == (
        theirs.rms_norm_eps,
        theirs.rope_parameters["rope_theta"],
    )


def test_no_number_of_key_heads_means_one_for_each_head() -> None:
    assert backbone_from_config(tiny(num_key_value_heads=None), PATH).num_kv_heads == 4


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_the_rope_base_is_found_wherever_it_is_written(key: str) -> None:
    config = tiny(**{key: {"rope_type": "default", "rope_theta": 5e5}})
    assert backbone_from_config(config, PATH).rope_theta == 5e5


@pytest.mark.parametrize("scaling", [{"type": "default"}, {}, None, {"rope_theta": 9.0}], ids=str)
def test_of_two_ropes_the_one_that_transformers_takes_is_taken(scaling: object) -> None:
    rope = {"rope_type": "default", "rope_theta": 7e3}
    config = tiny(rope_parameters=rope, rope_scaling=scaling, rope_theta=5e5)
    expected = MistralConfig.from_dict(deepcopy(config)).rope_parameters["rope_theta"]
    assert backbone_from_config(config, PATH).rope_theta == expected


def test_several_end_tokens_mean_the_first() -> None:
    assert text_from_config({"eos_token_id": [7, 8]}, PATH).eos_id == 7


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"model_type": "gpt2"}, "got model_type 'gpt2', expected one of"),
    "family of a wrong kind": ({"model_type": ["llama"]}, r"got model_type \['llama'\], expected"),
    "more layers than any": ({"num_hidden_layers": 10**9}, "num_layers is 10+, expected at most"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
    "attention bias": ({"attention_bias": True}, "attention_bias is True, expected False"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is True, expected False"),
    "scaled rope": ({"rope_scaling": {"type": "yarn"}}, "rope type is 'yarn', expected 'default'"),
    "rope of 5": ({"rope_parameters": {"rope_type": "llama3"}}, "rope type is 'llama3'"),
    "rope of a wrong kind": ({"rope_scaling": 2.0}, "rope_scaling is 2.0, expected an object"),
    "half a rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "no size": ({"hidden_size": None}, "hidden_size is None, expected a whole number"),
    "a size of zero": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "a size below zero": ({"vocab_size": -1}, "vocab_size is -1"),
    "a size that is a fraction": ({"intermediate_size": 1.5}, "intermediate_size is 1.5"),
    "a size that is a truth": ({"num_attention_heads": True}, "num_attention_heads is True"),
    "a size that is a text": ({"vocab_size": "320"}, "vocab_size is '320'"),
    "an infinite base": ({"rope_theta": float("inf")}, "rope_theta is inf, expected a positive"),
    "no epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive"),
    "heads that do not share": ({"num_key_value_heads": 3}, "4 query heads .* 3 key heads"),
    "a size of too many digits": ({"vocab_size": 10**30}, "vocab_size is 10+, expected a .* below"),
    "an odd head": ({"head_dim": 15}, "width 15 .* an even width"),
}


@pytest.mark.parametrize(("change", "problem"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_built_is_refused_by_key_and_value(
    change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        backbone_from_config(tiny(**change), PATH)
    assert str(PATH) in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize(
    "change",
    [{"bos_token_id": None}, {"eos_token_id": []}, {"eos_token_id": -2}, {"bos_token_id": 10**30}],
)
def test_a_text_needs_its_two_tokens(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"bos_token_id .* and eos_token_id .*two numbers"):
        text_from_config(change, PATH)


RELEASED_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no decoder": ({"text_config": None}, "text_config is missing"),
    "no end token": ({"add_eos": False}, "add_eos is False, expected true"),
    "instructions pooled": ({"is_mask_instruction": False}, "is_mask_instruction is False"),
    "pooler of a wrong kind": ({"latent_attention_config": [1]}, r"config is \[1\]"),
    "another width": (
        {"latent_attention_config": {"latent_dim": 2048}},
        "latent_dim is 2048, expected hidden_size 4096",
    ),
    "no heads": (
        {"latent_attention_config": {"num_cross_heads": 0}},
        "latent_attention_config.num_cross_heads is 0",
    ),
}


@pytest.mark.parametrize(("change", "problem"), RELEASED_FAULTS.values(), ids=RELEASED_FAULTS)
def test_a_fault_in_the_released_config_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        released_spec({**RELEASED_V2, **change}, Path("folder"))
    assert str(Path("folder") / "config.json") in caught.value.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist"),
        (b"{", "cannot be read as JSON"),
        (b"\xff{}", "cannot be read as JSON"),
        (json.dumps([1]).encode(), "got a JSON list, expected an object"),
        (b'{"a":' * 100_000, "cannot be read as JSON"),
    ],
    ids=["missing", "cut", "not-utf8", "list", "deep"],
)
def test_a_file_that_is_no_json_object_is_refused(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_json(path)
    assert str(path) in caught.value.problem


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}', encoding="utf-8-sig")
    assert read_json(path) == {"model_type": "llama"}
