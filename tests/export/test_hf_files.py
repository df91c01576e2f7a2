"""Tests of nvembed_deploy/export/hf_files.py: other tools read an artifact's folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from nvembed_deploy.artifact import read_manifest
from nvembed_deploy.text import Tokenizer


def test_transformers_reads_the_decoders_shape(tiny_artifact: Path) -> None:
    config, spec = AutoConfig.from_pretrained(tiny_artifact), read_manifest(tiny_artifact).spec
    assert config.model_type == "mistral"
    assert config.hidden_size == spec.backbone.hidden_size
    assert config.num_hidden_layers == spec.backbone.num_layers
    assert config.num_key_value_heads == spec.backbone.num_kv_heads
    assert config.eos_token_id == spec.text.eos_id


def test_transformers_tokenises_as_the_artifact_does(tiny_artifact: Path) -> None:
    theirs, spec = AutoTokenizer.from_pretrained(tiny_artifact), read_manifest(tiny_artifact).spec
    ours = Tokenizer.load(tiny_artifact / "tokenizer.json", spec.text, spec.backbone.vocab_size)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (spec.text.bos_id, spec.text.eos_id)
    (tokens,) = ours.tokenize(["a heap is a tree"])
    plain = theirs("a heap is a tree", add_special_tokens=False).input_ids
    assert [i for i in tokens.ids if i not in theirs.all_special_ids] == plain
