"""Tests of nvembed_deploy/model/names.py."""

from __future__ import annotations

import math

import pytest

from nvembed_deploy.model.names import expected_shapes, our_name, released_name
from nvembed_deploy.spec import ModelSpec


def test_the_full_config_has_304_released_keys_and_7_851_016_192_parameters() -> None:
    shapes = expected_shapes(ModelSpec())
    assert len({released_name(name) for name in shapes}) == 304
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_851_016_192


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("embedding_model.embed_tokens.weight", (32000, 4096)),
        ("embedding_model.layers.31.self_attn.k_proj.weight", (1024, 4096)),
        ("embedding_model.layers.0.mlp.down_proj.weight", (4096, 14336)),
        ("latent_attention_model.latents", (512, 4096)),
        ("latent_attention_model.cross_attend_blocks.0.fn.to_q.weight", (32768, 4096)),
        ("latent_attention_model.cross_attend_blocks.0.fn.to_kv.weight", (65536, 4096)),
        ("latent_attention_model.cross_attend_blocks.0.fn.to_out.weight", (4096, 32768)),
        ("latent_attention_model.cross_attend_blocks.0.norm_context.bias", (4096,)),
        ("latent_attention_model.cross_attend_blocks.1.fn.net.0.bias", (32768,)),
        ("latent_attention_model.cross_attend_blocks.1.fn.net.2.weight", (4096, 16384)),
    ],
)
def test_released_keys_have_the_released_shapes(key: str, shape: tuple[int, ...]) -> None:
    name = our_name(key)
    assert name is not None
    assert expected_shapes(ModelSpec())[name] == shape


def test_translation_is_reversible_for_every_name() -> None:
    for name in expected_shapes(ModelSpec()):
        assert our_name(released_name(name)) == name


def test_a_base_decoders_keys_are_understood_with_and_without_their_prefix() -> None:
    expected = "backbone.layers.3.mlp.up_proj.weight"
    assert our_name("model.layers.3.mlp.up_proj.weight") == expected
    assert our_name("layers.3.mlp.up_proj.weight") == expected


def test_an_unknown_key_has_no_name() -> None:
    assert our_name("vision_tower.patch.weight") is None
