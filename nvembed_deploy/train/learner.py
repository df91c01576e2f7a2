"""This file owns the model as it is trained: a frozen decoder, its LoRA adapter, its pooler.

The decoder's weights are held in the run's precision, what is trained in float32. Shapes: B batch,
S sequence, D hidden.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from nvembed_deploy.checkpoint import Checkpoint
from nvembed_deploy.errors import CheckpointError, RecipeError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.model.names import BACKBONE, backbone_shapes, released_name
from nvembed_deploy.model.nvembed import NVEmbed, load_model
from nvembed_deploy.model.weights import Weights, open_weights
from nvembed_deploy.tensorwriter import SafetensorsWriter
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.recipe import AdapterSection, TrainRecipe
from nvembed_deploy.train.start import load_tokenizer, open_start, parts_of

_MODEL, _POOLER = "model.", "pooler."
_DECODER = "backbone.decoder."
_ADAPTER_KEY = "base_model.model."
"""What peft puts before a module's name in adapter_model.safetensors."""


class Learner(nn.Module):
    """An NV-Embed model whose adapter and pooler learn; the rest is frozen."""

    def __init__(self, model: NVEmbed, parts: Parts, config: LoraConfig) -> None:
        """Inject the adapter and choose what is trained; use `open_learner`."""
        super().__init__()
        inject_adapter_in_model(config, model.backbone.decoder)
        self.model = model
        self.parts = parts
        self.config = config
        for name, parameter in model.named_parameters():
            is_trained = "lora_" in name or name.startswith(_POOLER)
            parameter.requires_grad_(is_trained)
            if is_trained:
                parameter.data = parameter.data.float()

    def forward(self, *masks_BS: torch.Tensor) -> torch.Tensor:
        """Return embedding_BD of length 1, float32 (see `NVEmbed.forward`)."""
        embedding_BD: torch.Tensor = self.model(*masks_BS)
        return embedding_BD

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def groups(self, rate: float, pooler_rate: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups: the adapter, then the pooler."""
        trained = self.trained()
        pooler = [p for n, p in trained.items() if n.startswith(_POOLER)]
        adapter = [p for n, p in trained.items() if not n.startswith(_POOLER)]
        groups = [{"params": adapter, "lr": rate, "rate": rate}]
        return groups + (
            [{"params": pooler, "lr": pooler_rate, "rate": pooler_rate}] if pooler else []
        )


def open_learner(
    recipe: TrainRecipe, dtype: torch.dtype, device: torch.device, *, is_sharded: bool = False
) -> tuple[Learner, Tokenizer]:
    """Build what a recipe trains: on a decoder, a released model or an earlier stage's checkpoint.

    It is on the device; one that is to be sharded is on the processor (see `shard.py`).

    Raises:
        CheckpointError: it cannot be read, or its adapter cannot be trained on.
        RecipeError: the decoder has no linears of the names that are to be adapted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = open_start(recipe, Path(scratch))
        parts, config = parts_of(checkpoint, recipe.model), _lora(recipe.adapter, checkpoint)
        weights = open_weights(dataclasses.replace(checkpoint, adapter=None))
        place = torch.device("cpu") if is_sharded else device
        model = load_model(weights, dtype=dtype, device=place)
        tokenizer = load_tokenizer(checkpoint, Path(scratch))
        learner = Learner(model, parts, config)
        _load_pooler(learner, weights)
    if checkpoint.adapter is not None:
        _load_adapter(learner, checkpoint.adapter)
    decoder: Any = model.backbone.decoder  # transformers leaves its methods untyped
    if device.type == "cpu":  # its fused attention is slow backwards: 1.11 x the tokens/s without
        decoder.set_attn_implementation("eager")
    if recipe.run.gradient_checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.run.compile:
        for layer in decoder.layers:
            layer.compile(dynamic=True)
    return learner.to(place).train(), tokenizer


def _lora(section: AdapterSection, checkpoint: Checkpoint) -> LoraConfig:
    if checkpoint.adapter is not None:
        config: LoraConfig = LoraConfig.from_pretrained(str(checkpoint.adapter))
        config.lora_dropout, config.inference_mode = section.dropout, False
        return config
    _check_linears(section.target_modules, backbone_shapes(checkpoint.spec.backbone))
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.target_modules),
        task_type="FEATURE_EXTRACTION",
    )


def _check_linears(targets: Iterable[str], names: Iterable[str]) -> None:
    """Refuse a name that peft would find nowhere: it is no linear's, nor the end of one's."""
    linears = [name.removeprefix(BACKBONE).removesuffix(".weight") for name in names]
    lost = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linears)]
    if lost:
        raise RecipeError(
            f"adapter.target_modules: {', '.join(lost)} is the name of no linear of the decoder",
            "write q_proj for every layer's, layers.0.self_attn.q_proj for one layer's",
        )


def _load_pooler(learner: Learner, weights: Weights) -> None:
    """Fill the pooler anew, in float32: the model was filled in the decoder's precision."""
    for name, parameter in learner.trained().items():
        if name.startswith(_POOLER):
            parameter.data.copy_(torch.from_numpy(weights.read_float32(name)))


def _load_adapter(learner: Learner, adapter: Path) -> None:
    stored = load_file(adapter / "adapter_model.safetensors")
    own = {_adapter_key(n): p for n, p in learner.trained().items() if "lora_" in n}
    if set(stored) != set(own):
        odd = sorted(set(stored) ^ set(own))
        raise CheckpointError(
            f"{adapter}: {len(odd)} tensors do not fit its own config, as {odd[0]}",
            "copy the adapter again",
        )
    for key, parameter in own.items():
        parameter.data.copy_(stored[key])


def _adapter_key(name: str) -> str:
    tail = name.removeprefix(_DECODER).replace(".default.", ".").replace(".default", "")
    if "lora_magnitude_vector" in tail:  # peft saves DoRA's without it
        tail = tail.removesuffix(".weight")
    return _ADAPTER_KEY + tail


def save_checkpoint(learner: Learner, trained: dict[str, torch.Tensor], out: Path) -> None:
    """Write adapter (PEFT layout) and pooler as a checkpoint folder; it appears whole.

    Args:
        learner: what was trained.
        trained: its `whole_weights`.
        out: the folder to write; its disk holds the parts too, which the temporary one may not.

    Raises:
        ArtifactError: `out` exists, or the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        adapter, pooler = Path(scratch) / "adapter", Path(scratch) / "pooler.safetensors"
        adapter.mkdir()
        config = dataclasses.replace(learner.config, inference_mode=True)
        config.base_model_name_or_path = learner.parts.base.name
        config.save_pretrained(str(adapter))
        deltas = {_adapter_key(n): p for n, p in trained.items() if "lora_" in n}
        poolings = {released_name(n): p for n, p in trained.items() if n.startswith(_POOLER)}
        _write(adapter / "adapter_model.safetensors", deltas)
        _write(pooler, poolings)
        parts = dataclasses.replace(
            learner.parts, adapter=adapter, pooler=pooler if poolings else None
        )
        assemble_checkpoint(parts, out)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    entries = [(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path, entries, {"format": "pt"}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, [tensor.numpy()])


def whole_weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Return what is trained, on the CPU, gathered where it is sharded (all ranks must call)."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(learner, options=options)
    return {name.removeprefix(_MODEL): tensor.contiguous() for name, tensor in state.items()}


def load_weights(learner: Learner, weights: dict[str, torch.Tensor]) -> None:
    """Set what is trained from `whole_weights`' data (all ranks must call)."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    named: dict[str, Any] = {_MODEL + name: tensor for name, tensor in weights.items()}
    set_model_state_dict(learner, named, options=options)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which matrix products run in `dtype`.

    Casts are not cached: a cached cast is older than the next chunk's graph, so its gradient comes
    after a sharded layer has sent its own, and is lost (2% of the norm on the tiny model).
    """
    is_lower = dtype is not torch.float32
    return torch.autocast(device.type, dtype, enabled=is_lower, cache_enabled=False)
