"""Tests of gguf.py: a GGUF model is the decoder that transformers reads from it, or refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed_deploy.checkpoint import DESCRIPTION, open_base, open_checkpoint
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.gguf import GGUFFile, open_gguf
from nvembed_deploy.gguf_header import read_header
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import ModelSpec, PoolerSpec, Pooling
from tests.factories import TINY, weights
from tests.tensor_data import gguf_metadata, gguf_tensors, same_bits, write_gguf

QUANTIZATIONS = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_1"]
ALL_HEADS = replace(TINY, backbone=replace(TINY.backbone, num_kv_heads=4))
OTHER = replace(
    TINY,
    backbone=replace(TINY.backbone, rope_theta=1e6, rms_norm_eps=1e-6, max_positions=512),
)
MEAN = PoolerSpec(pooling=Pooling.MEAN)
SPECS = {"grouped heads": TINY, "all heads": ALL_HEADS, "other numbers": OTHER}


def write_model(path: Path, spec: ModelSpec = TINY, quantization: str = "F32") -> Path:
    return write_gguf(path, gguf_metadata(spec), gguf_tensors(spec), quantization)


def reference(path: Path) -> Any:
    """Return transformers' own model of the file."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def hugging_face(spec: ModelSpec = TINY) -> dict[str, np.ndarray]:
    """Return the decoder's tensors as they were before llama.cpp converted them."""
    named = {name.removeprefix("backbone."): array for name, array in weights(spec).items()}
    return {name: array for name, array in named.items() if not name.startswith("pooler.")}


def assert_same_model(ours: GGUFFile, theirs: Any) -> None:
    tensors = theirs.model.state_dict()
    assert set(ours.entries) == set(tensors)
    for name, entry in ours.entries.items():
        assert entry.shape == tuple(tensors[name].shape)
        assert same_bits(entry.read(), tensors[name].numpy()), name


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_tensors_are_bit_by_bit_those_of_transformers(tmp_path: Path, quantization: str) -> None:
    path = write_model(tmp_path / "tiny.gguf", quantization=quantization)
    assert_same_model(open_gguf(path), reference(path))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_sizes_and_numbers_are_those_of_transformers(tmp_path: Path, spec: ModelSpec) -> None:
    path = write_model(tmp_path / "tiny.gguf", spec)
    ours, theirs = open_gguf(path), reference(path)
    assert_same_model(ours, theirs)
    assert ours.backbone == spec.backbone
    config, backbone = theirs.config, ours.backbone
    assert backbone.vocab_size == config.vocab_size
    assert backbone.hidden_size == config.hidden_size
    assert backbone.num_layers == config.num_hidden_layers
    assert backbone.num_heads == config.num_attention_heads
    assert backbone.num_kv_heads == config.num_key_value_heads
    assert backbone.head_width == config.head_dim
    assert backbone.intermediate_size == config.intermediate_size
    assert backbone.max_positions == config.max_position_embeddings
    assert backbone.rope_theta == config.rope_parameters["rope_theta"]
    assert backbone.rms_norm_eps == pytest.approx(config.rms_norm_eps, rel=1e-7)
    assert (ours.bos_id, ours.eos_id) == (config.bos_token_id, config.eos_token_id)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_float32_file_gives_back_the_model_it_was_made_of(
    tmp_path: Path, spec: ModelSpec
) -> None:
    entries = open_gguf(write_model(tmp_path / "tiny.gguf", spec)).entries
    original = hugging_face(spec)
    assert set(entries) == set(original)
    for name, array in original.items():
        assert same_bits(entries[name].read(), array), name


def test_a_language_head_of_its_own_is_left_out(tmp_path: Path) -> None:
    tensors = gguf_tensors()
    tensors["output.weight"] = tensors["token_embd.weight"] + 1
    path = write_gguf(tmp_path / "untied.gguf", gguf_metadata(), tensors)
    theirs = reference(path)
    assert not theirs.config.tie_word_embeddings
    assert_same_model(open_gguf(path), theirs)


def dequantizable() -> list[str]:
    """Return the block formats that the gguf package reads, from their own description."""
    return [k.name for k in gguf.quants._type_traits if k.name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("quantization", dequantizable())
def test_every_block_format_is_dequantised_as_the_gguf_package_does(
    tmp_path: Path, quantization: str
) -> None:
    kind = gguf.GGMLQuantizationType[quantization]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = max(1, 256 // block)
    stored = np.random.default_rng(0).integers(0, 256, (6, blocks * nbytes), np.uint8)
    metadata = gguf_metadata() | {"llama.embedding_length": blocks * block}
    path = tmp_path / "one.gguf"
    write_gguf(path, metadata, {"token_embd.weight": stored}, quantization)
    entry = open_gguf(path).entries["embed_tokens.weight"]
    with np.errstate(all="ignore"):  # any bits may be a scale
        assert entry.shape == (6, blocks * block)
        assert same_bits(entry.read(), gguf.quants.dequantize(stored, kind))
        assert same_bits(entry.read(slice(2, 5)), gguf.quants.dequantize(stored[2:5], kind))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return open_gguf(write_model(tmp_path_factory.mktemp("rows") / "tiny.gguf", TINY, "Q8_0"))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_rows_are_the_rows_of_the_whole(opened: GGUFFile, data: st.DataObject) -> None:
    names = ["embed_tokens", "norm", "layers.1.self_attn.q_proj", "layers.2.self_attn.k_proj"]
    entry = opened.entries[data.draw(st.sampled_from(names)) + ".weight"]
    ends = st.none() | st.integers(-entry.shape[0] - 1, entry.shape[0] + 1)
    rows = data.draw(st.builds(slice, ends, ends, st.sampled_from([None, 1])))
    assert same_bits(entry.read(rows), entry.read()[rows])


def test_rows_with_a_step_are_refused(opened: GGUFFile) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        opened.entries["norm.weight"].read(slice(0, 4, 2))


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    entries = open_gguf(path).entries
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: .* bytes, expected"):
        for entry in entries.values():
            entry.read()


@pytest.mark.parametrize(
    ("left_out", "field"),
    [
        ("llama.attention.head_count_kv", "num_kv_heads"),
        ("llama.rope.freq_base", "rope_theta"),
        ("llama.rope.dimension_count", "head_width"),
        ("llama.vocab_size", "vocab_size"),
    ],
)
def test_a_size_left_out_has_the_value_llama_cpp_gives_it(
    tmp_path: Path, left_out: str, field: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata(ALL_HEADS) | {left_out: None})
    assert getattr(open_gguf(path).backbone, field) == getattr(ALL_HEADS.backbone, field)


@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata() | {key: None})
    with pytest.raises(CheckpointError, match=rf"a\.gguf: the key {key} is missing"):
        open_gguf(path)


METADATA_FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"general.architecture": "qwen2"}, "got architecture 'qwen2', expected 'll"),
    "heads differ by layer": (
        {"llama.attention.head_count": [4, 4, 2]},
        r"llama\.attention\.head_count is \[4, 4, 2\], expected int",
    ),
    "partial rotary embedding": (
        {"llama.rope.dimension_count": 8, "llama.attention.key_length": 16},
        r"got head widths \{'rope.dimension_count': 8, 'attention.key_length': 16\}, expected one",
    ),
    "scaled positions": ({"llama.rope.scaling.type": "yarn"}, r"scaling\.type is 'yarn'"),
    "scaled by a factor": ({"llama.rope.scaling.factor": 8.0}, r"scaling\.factor is 8\.0"),
    "scaled linearly": ({"llama.rope.scale_linear": 4.0}, r"rope\.scale_linear is 4\.0"),
    "scaled otherwise": ({"llama.rope.scaling.attn_factor": 1.2}, r"attn_factor is 1\.2"),
    "experts": ({"llama.expert_count": 8}, r"llama\.expert_count is 8, which is not supported"),
    "no width": ({"llama.rope.dimension_count": 0}, "head_width is 0, expected a whole number of"),
    "an odd width": ({"llama.rope.dimension_count": 1}, "query heads of width 1 .* an even width"),
    "no heads": ({"llama.attention.head_count": 0}, "num_heads is 0, expected a whole number of"),
    "no key heads": ({"llama.attention.head_count_kv": 0}, "num_kv_heads is 0, expected a whole"),
    "heads that do not share": (
        {"llama.attention.head_count_kv": 3},
        "4 query heads .* 3 key heads",
    ),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": 0.0},
        "rms_norm_eps is 0.0, expected",
    ),
    "tokens that are a number": ({"tokenizer.ggml.tokens": 7}, "tokens is 7, expected list"),
    "attention scale": ({"llama.attention.scale": 0.5}, r"llama\.attention\.scale is 0\.5"),
}


@pytest.mark.parametrize(("metadata", "message"), METADATA_FAULTS.values(), ids=METADATA_FAULTS)
def test_a_model_that_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata() | metadata, gguf_tensors())
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


def test_keys_at_the_value_that_changes_nothing_are_accepted(tmp_path: Path) -> None:
    harmless = {
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 1.0,
        "llama.rope.scale_linear": 1.0,
        "llama.expert_count": 0,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
    }
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata() | harmless)
    assert open_gguf(path).backbone == TINY.backbone


VECTOR, MATRIX = np.zeros(64, np.float32), np.zeros((64, 64), np.float32)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blk.0.attn_q.bias", VECTOR, r"blk\.0\.attn_q\.bias \(1 in all\) have no place"),
        ("blk.0.ffn_gate_inp.weight", MATRIX, r"blk\.0\.ffn_gate_inp\.weight .* no place"),
        ("rope_freqs.weight", VECTOR, r"rope_freqs\.weight .* rotary scaling"),
        ("blk.0.attn_q.weight", MATRIX[:32], r"attn_q\.weight has 32 rows, expected 4 heads of 16"),
        ("blk.0.attn_k.weight", MATRIX, r"attn_k\.weight has 64 rows, expected 2 heads of 16"),
        (
            "blk.0.attn_q.weight",
            MATRIX[:, :0],
            r"attn_q\.weight has the shape \[64, 0\], expected no",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, name: str, tensor: np.ndarray, message: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", gguf_metadata(), gguf_tensors() | {name: tensor})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path)
    assert str(path) in caught.value.problem


@pytest.mark.parametrize("quantization", ["Q8_1", "Q8_K", "I8"])
def test_a_format_that_cannot_be_dequantised_is_named(tmp_path: Path, quantization: str) -> None:
    kind = gguf.GGMLQuantizationType[quantization]
    stored = np.zeros((4, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    path = tmp_path / "a.gguf"
    write_gguf(path, gguf_metadata(), {"token_embd.weight": stored}, quantization)
    with pytest.raises(
        CheckpointError, match=rf"token_embd\.weight is stored as {quantization}"
    ) as caught:
        open_gguf(path)
    assert "Q8_0" in caught.value.fix


def test_a_model_cut_in_its_tensors_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    starts = [tensor.offset for tensor in read_header(path).tensors]
    for size in (starts[0] - 1, starts[0] + 1, starts[5], starts[-1] + 3):
        os.truncate(write_model(path), size)
        with pytest.raises(CheckpointError, match="not a complete GGUF file"):
            open_gguf(path)


def test_padding_is_eos_whatever_padding_token_the_file_has(tmp_path: Path) -> None:
    metadata = gguf_metadata() | {"tokenizer.ggml.padding_token_id": 7}
    text = open_base(write_gguf(tmp_path / "a.gguf", metadata))[0].text
    assert (text.bos_id, text.eos_id, text.pad_id) == (1, 2, 2)


def test_a_gguf_file_is_a_base_decoder(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", OTHER)
    spec, entries, tokenizer = open_base(path)
    assert spec.backbone == OTHER.backbone
    assert (spec.text.bos_id, spec.text.eos_id, spec.text.pad_id) == (1, 2, 2)
    assert tokenizer == path
    assert set(entries) == set(hugging_face(OTHER))


def test_a_gguf_file_in_the_hub_s_cache_is_a_base_by_the_name_of_its_link(
    tmp_path: Path, tiny_base: Path
) -> None:
    snapshot, out = tmp_path / "snapshots" / "1a2b", tmp_path / "out"
    snapshot.mkdir(parents=True)
    write_model(tmp_path / "tiny.gguf").rename(tmp_path / "blob")
    (snapshot / "tiny.gguf").symlink_to("../../blob")
    shutil.copy(tiny_base / "tokenizer.json", snapshot)
    parts = Parts(snapshot / "tiny.gguf", pooler_spec=MEAN)
    assemble_checkpoint(parts, out)
    assert json.loads((out / DESCRIPTION).read_text())["base"] == "../snapshots/1a2b/tiny.gguf"
    (out / "tokenizer.json").unlink()
    checkpoint = open_checkpoint(out)
    assert checkpoint.tokenizer == snapshot / "tokenizer.json"
    assert same_bits(
        open_weights(checkpoint).read("backbone.norm.weight"), hugging_face()["norm.weight"]
    )


def test_a_tokenizer_beside_a_gguf_file_that_is_copied_is_taken(
    tmp_path: Path, tiny_base: Path
) -> None:
    """The file's own, which cannot be built here, is not looked at."""
    own = Path(shutil.copy(tiny_base / "tokenizer.json", tmp_path))
    parts = Parts(write_model(tmp_path / "tiny.gguf"), pooler_spec=MEAN)
    assemble_checkpoint(parts, tmp_path / "out", copy_base=True)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == own.read_bytes()
    own.unlink()
    with pytest.raises(CheckpointError, match="its merges do not fit") as caught:
        assemble_checkpoint(parts, tmp_path / "other", copy_base=True)
    assert str(parts.base) in caught.value.problem
