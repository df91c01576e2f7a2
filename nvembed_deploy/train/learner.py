"""This file owns the model as it is trained: a frozen decoder, its LoRA adapter, its pooler.

The decoder's weights are held in the run's precision, what is trained in float32. Shapes: B batch,
S sequence, D hidden.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from nvembed_deploy.checkpoint import (
    DESCRIPTION,
    Checkpoint,
    is_released,
    open_base,
    open_checkpoint,
    write_tokenizer,
)
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.model.names import released_name
from nvembed_deploy.model.nvembed import NVEmbed, load_model
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.recipe import AdapterSection, ModelSection, TrainRecipe

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
    """
    with tempfile.TemporaryDirectory() as scratch:
        start = recipe.model.checkpoint or _start(recipe, Path(scratch))
        checkpoint = open_checkpoint(start)
        plain = dataclasses.replace(checkpoint, adapter=None)
        place = torch.device("cpu") if is_sharded else device
        model = load_model(open_weights(plain), dtype=dtype, device=place)
        write_tokenizer(checkpoint, Path(scratch) / "tokenizer.json")
        spec = checkpoint.spec
        tokenizer = Tokenizer.load(
            Path(scratch) / "tokenizer.json", spec.text, spec.backbone.vocab_size
        )
    config = _lora(recipe.adapter, checkpoint.adapter)
    learner = Learner(model, _parts(checkpoint, recipe.model), config)
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


def _start(recipe: TrainRecipe, scratch: Path) -> Path:
    """Return a checkpoint to begin from: a released one, or the decoder with a fresh pooler."""
    base = Path(recipe.model.base or "").resolve()
    if not base.exists():
        raise CheckpointError(f"base {base} does not exist", "correct model.base in the recipe")
    if (base / DESCRIPTION).exists():
        raise CheckpointError(f"base {base} is a checkpoint", "name it as model.checkpoint")
    if is_released(base):
        _refuse_shape(recipe.model, base)
        return base
    backbone = open_base(base)[0].backbone
    spec = recipe.model.pooler_spec(backbone)
    parts = Parts(
        base, pooler_spec=spec, causal=recipe.model.mask == "causal", name=recipe.model.name
    )
    assemble_checkpoint(parts, scratch / "start", seed=recipe.run.seed)
    return scratch / "start"


def _refuse_shape(section: ModelSection, base: Path) -> None:
    if section.shape_keys:
        raise CheckpointError(
            f"base {base} is a released model: {', '.join(section.shape_keys)} are its own",
            "remove these keys of [model]; its pooler is trained on",
        )


def _parts(checkpoint: Checkpoint, section: ModelSection) -> Parts:
    base = section.base or _base_of(checkpoint)
    spec = checkpoint.spec
    return Parts(
        base=Path(base).resolve(),
        pooler_spec=spec.pooler,
        causal=spec.backbone.causal,
        name=section.name or (spec.name if section.checkpoint else None),
        prompts=spec.prompts,
        text=spec.text,
        tokenizer=checkpoint.tokenizer.resolve() if section.checkpoint else None,
    )


def _base_of(checkpoint: Checkpoint) -> Path:
    description = checkpoint.path / DESCRIPTION
    if not description.exists():
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is a released model, whose adapter is merged",
            "name it as model.base: a new adapter is put on it, and its pooler trained on",
        )
    named = json.loads(description.read_text(encoding="utf-8"))["base"]
    return Path(checkpoint.path, named).resolve()


def _lora(section: AdapterSection, adapter: Path | None) -> LoraConfig:
    if adapter is not None:
        config: LoraConfig = LoraConfig.from_pretrained(str(adapter))
        config.lora_dropout, config.inference_mode = section.dropout, False
        return config
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.target_modules),
        task_type="FEATURE_EXTRACTION",
    )


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
    return _ADAPTER_KEY + name.removeprefix(_DECODER).replace(".default.", ".").replace(
        ".default", ""
    )


def save_checkpoint(
    learner: Learner, trained: dict[str, torch.Tensor], out: Path, *, overwrite: bool = False
) -> ModelSpec:
    """Write adapter (PEFT layout) and pooler as a checkpoint folder; it appears whole.

    Args:
        learner: what was trained.
        trained: its `whole_weights`.
        out: the folder to write.
        overwrite: replace a checkpoint that is there.

    Raises:
        ArtifactError: `out` exists and is not to be replaced.
    """
    with tempfile.TemporaryDirectory() as scratch:
        adapter, pooler = Path(scratch) / "adapter", Path(scratch) / "pooler.safetensors"
        adapter.mkdir()
        config = dataclasses.replace(learner.config, inference_mode=True)
        config.base_model_name_or_path = learner.parts.base.name
        config.save_pretrained(str(adapter))
        deltas = {_adapter_key(n): p for n, p in trained.items() if "lora_" in n}
        save_file(deltas, adapter / "adapter_model.safetensors", {"format": "pt"})
        poolings = {released_name(n): p for n, p in trained.items() if n.startswith(_POOLER)}
        save_file(poolings, pooler)
        parts = dataclasses.replace(
            learner.parts, adapter=adapter, pooler=pooler if poolings else None
        )
        return assemble_checkpoint(parts, out, overwrite=overwrite)


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
