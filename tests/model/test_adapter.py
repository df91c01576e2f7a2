"""Tests of nvembed_deploy/model/adapter.py, against adapters that peft itself wrote and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.adapter import open_adapter
from nvembed_deploy.model.names import backbone_shapes
from tests import factories

TARGETS = backbone_shapes(factories.TINY.backbone)


def write_adapter(
    base: Path, folder: Path, *, kind: Any = AutoModel, **options: Any
) -> dict[str, np.ndarray]:
    """Train nothing, but give a peft adapter random weights; save it; return peft's own merge."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})
    model = get_peft_model(kind.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(std=0.1)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(folder)
    merged = model.merge_and_unload().state_dict()
    return {f"backbone.{n.removeprefix('model.')}": p.numpy() for n, p in merged.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"down_proj": 3}},
        {"target_modules": ["v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ],
    ids=["plain", "rslora", "dora", "dora-rslora", "patterns", "one-layer"],
)
def test_merging_equals_pefts_own_merge(
    tmp_path: Path, tiny_base: Path, options: dict[str, Any]
) -> None:
    merged = write_adapter(tiny_base, tmp_path, **options)
    adapter = open_adapter(tmp_path, TARGETS)
    base = factories.weights()
    assert len(adapter) > 0
    for name in TARGETS:
        got = adapter.merge(name, base[name]) if name in adapter else base[name]
        assert np.abs(got - merged[name]).max() <= 2e-6, name


PATTERNS: dict[str, dict[str, float]] = {
    "whole-name": {"model.layers.0.self_attn.q_proj": 3},
    "whole-name-anchored": {r"^model\.layers\.1\.mlp\.down_proj": 3},
    "short-name": {"layers.0.self_attn.q_proj": 3},
    "short-name-anchored": {"^layers.0.self_attn.q_proj": 3},
    "last-part": {"down_proj": 3, "q_proj": 5},
    "first-that-fits": {r"0\.self_attn\.q_proj": 3, "q_proj": 5},
    "half-a-part": {"_proj": 3},
    "zero": {"q_proj": 0},
}


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM], ids=["decoder", "causal-lm"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_fit_the_modules_that_peft_fits(
    tmp_path: Path, tiny_base: Path, kind: Any, pattern: str
) -> None:
    options = {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": PATTERNS[pattern]}
    merged = write_adapter(tiny_base, tmp_path, kind=kind, **options)
    adapter = open_adapter(tmp_path, TARGETS)
    base = factories.weights()
    assert len(adapter) == 2 * factories.TINY.backbone.num_layers
    for name in filter(adapter.__contains__, TARGETS):
        assert np.abs(adapter.merge(name, base[name]) - merged[name]).max() <= 2e-6, name


def test_a_rank_of_one_module_under_a_language_head_is_found(
    tmp_path: Path, tiny_base: Path
) -> None:
    ranks = {"rank_pattern": {"^model.layers.2.mlp.up_proj": 7}, "target_modules": ["up_proj"]}
    merged = write_adapter(tiny_base, tmp_path, kind=AutoModelForCausalLM, **ranks)
    name = "backbone.layers.2.mlp.up_proj.weight"
    got = open_adapter(tmp_path, TARGETS).merge(name, factories.weights()[name])
    assert np.abs(got - merged[name]).max() <= 2e-6


def test_rows_merge_as_the_whole_does(tmp_path: Path, tiny_base: Path) -> None:
    write_adapter(tiny_base, tmp_path, use_dora=True)
    adapter = open_adapter(tmp_path, TARGETS)
    name = "backbone.layers.1.mlp.up_proj.weight"
    base = factories.weights()[name]
    whole = adapter.merge(name, base)
    rows = adapter.merge(name, base[10:20], slice(10, 20))
    assert np.allclose(whole[10:20], rows, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("modules_to_save", ["norm"]),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [3]),
        ("use_qalora", True),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"]}),
        ("kasa_config", {}),
        ("monteclora_config", {}),
        ("arrow_config", {}),
        ("lora_ga_config", {}),
        ("alora_invocation_tokens", [1]),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, tiny_base: Path, option: str, value: object
) -> None:
    write_adapter(tiny_base, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(CheckpointError, match=option):
        open_adapter(tmp_path, TARGETS)


@pytest.mark.parametrize(
    "options",
    [
        {"r": "4"},
        {"r": None},
        {"lora_alpha": {"q_proj": 8}},
        {"lora_alpha": float("nan")},
        {"rank_pattern": [4]},
        {"alpha_pattern": {"(q_proj": 8}},
    ],
    ids=str,
)
def test_a_rank_or_alpha_that_is_no_number_is_refused(
    tmp_path: Path, tiny_base: Path, options: dict[str, object]
) -> None:
    write_adapter(tiny_base, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: rank and alpha of layers\."):
        open_adapter(tmp_path, TARGETS)


def corrupt(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


KEY = "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"
TWIN = KEY.format("A").replace("layers", "model.layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY.format("B")), r"q_proj.*\['lora_A'\]"),
        (lambda t: t.update({KEY.format("A"): np.zeros((5, 64), np.float32)}), r"\[5, 64\]"),
        (lambda t: t.update({TWIN: t[KEY.format("A")]}), "are of one linear"),
        (lambda t: t.update({"base_model.model.vision.lora_A.weight": np.zeros(1)}), "vision"),
        (lambda t: t.update({KEY.format("A"): np.full((4, 64), np.nan, np.float32)}), "NaN"),
    ],
    ids=["missing-B", "wrong-rank", "twice", "unknown-module", "nan"],
)
def test_a_damaged_adapter_is_refused_by_key(
    tmp_path: Path, tiny_base: Path, change: Any, message: str
) -> None:
    write_adapter(tiny_base, tmp_path)
    corrupt(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(tmp_path, TARGETS)


def test_a_pickled_adapter_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    write_adapter(tiny_base, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="never unpickled"):
        open_adapter(tmp_path, TARGETS)
