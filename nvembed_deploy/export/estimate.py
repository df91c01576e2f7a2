"""This file owns what an export will take: disk, memory and time, before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvembed_deploy.export.calibration_texts import BATCH_TEXTS, FEW_BATCHES
from nvembed_deploy.export.formats import Kernels
from nvembed_deploy.spec import ModelSpec, PoolerForm

if TYPE_CHECKING:
    from nvembed_deploy.export.plan import Export
    from nvembed_deploy.export.recipe import ExportRecipe

_WRITTEN_BYTES_PER_SECOND, _FOLDED_FLOPS_PER_SECOND = 240e6, 55e9
_CHECKED_PARAMETERS_PER_SECOND = 40e6
_IMPORT_BYTES, _BYTES_PER_PARAMETER = 512 << 20, 10
"""Source: docs/numerics.md, full width, 2 cores, fp16: 71 s to write and 215 s to check 32 layers,
17 s and 40 s for 8, of each 5 s to fold the pooler; 1.28 GiB above the imports for the 134M
parameters of the largest tensor, whatever the depth."""
_CALIBRATED_FLOPS_PER_SECOND = 100e9
_TOKENS_OF_LIMIT = 0.5
"""Source: docs/numerics.md, calibrating a layer of full width on 2 cores. The built-in texts are
half as long as the limit, on average."""
_BATCH_COPIES = 14
"""Source: measured, one layer of full width on 256 texts of 128 tokens: 3.48 GiB above the imports.
Features of a batch are there several times at once: gate, up, their product, weighed, and more."""
_ENGINE_COPIES, _COMPILED_BYTES_PER_SECOND, _COMPILED_WITH_DIRECTIONS = 1.8, 97e6, 71e6
"""Source: benchmarks/results/engine-full-size-fp8*-sm89.json, of TensorRT for RTX, without
directions that are rounded twice and with them. Full TensorRT takes longer: it times kernels."""
_KEPT_BYTES = {Kernels.STANDARD: 1, Kernels.CPU: 3}
"""More of a weight that is kept, at most, for one that is rounded: 16 bits beside 8, or 8 beside 4;
of int8-cpu 32 beside 8."""
_NODE_BYTES, _WEIGHT_BYTES, _TOKEN_BYTES, _JSON_BYTES = 150, 150, 30, 4000
"""Disk beside the weights: per node, per weight's name (twice), per token of a built tokenizer."""


@dataclass(frozen=True)
class Estimate:
    """Peak memory with imports, and seconds: to write (and calibrate), to check, to compile."""

    peak_ram_bytes: int
    seconds: float
    self_check_seconds: float
    engine_seconds: float = 0.0


def estimate(planned: Export) -> Estimate:
    """Return what a planned export will take on two cores."""
    sizes = [math.prod(entry.shape) for entry in planned.block.weights]
    spec, recipe = planned.checkpoint.spec, planned.recipe
    peak = _BYTES_PER_PARAMETER * max(sizes)
    seconds = planned.num_bytes / _WRITTEN_BYTES_PER_SECOND
    if recipe.pooler is PoolerForm.FOLDED:
        seconds += _fold_flops(spec) / _FOLDED_FLOPS_PER_SECOND
    is_here = recipe.device == "cpu"  # what a GPU takes has not been measured
    if recipe.is_calibrated and is_here:
        peak = max(peak, _calibration_bytes(spec, recipe))
        seconds += _calibration_flops(spec, recipe) / _CALIBRATED_FLOPS_PER_SECOND
    if recipe.keep_share and is_here:
        peak = max(peak, _harm_bytes(spec, recipe))
        seconds += _harm_flops(spec, recipe) / _CALIBRATED_FLOPS_PER_SECOND
    compiled = 0 if recipe.engine is None else planned.num_bytes
    peak = max(peak, int(_ENGINE_COPIES * compiled))
    rate = _COMPILED_WITH_DIRECTIONS if recipe.rank else _COMPILED_BYTES_PER_SECOND
    return Estimate(
        engine_seconds=round(compiled / rate, 1),
        peak_ram_bytes=_IMPORT_BYTES + peak,
        seconds=round(seconds, 1),
        self_check_seconds=round(sum(sizes) / _CHECKED_PARAMETERS_PER_SECOND, 1),
    )


def _fold_flops(spec: ModelSpec) -> int:
    """Return the operations that fold K into Q and V into the output, for each head and latent."""
    pooler, hidden = spec.pooler, spec.backbone.hidden_size
    if not pooler.pooling.has_weights:
        return 0
    return 4 * pooler.num_latents * pooler.num_heads * pooler.head_width * hidden


def _calibration_bytes(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Return a block in float32, the states of all texts, its energies, and what a batch takes.

    With directions a weight is there once more, wider.
    """
    hidden, wide = spec.backbone.hidden_size, spec.backbone.intermediate_size
    copy = hidden * wide if recipe.rank else 0
    layer = copy + _layer_parameters(spec) + 3 * hidden**2 + wide**2 + _batch_values(spec, recipe)
    return int(4 * (_tokens(recipe) * hidden + max(layer, _pooler_values(spec))))


def _pooler_values(spec: ModelSpec) -> int:
    """Return the pooler in float32, folded, and its energies."""
    pooler, hidden = spec.pooler, spec.backbone.hidden_size
    if not pooler.pooling.has_weights:
        return 0
    scores = 2 * pooler.num_latents * pooler.num_heads
    return hidden * (scores + 3 * pooler.feed_width) + pooler.feed_width**2


def _calibration_flops(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Return two passes of all texts, the sums of x x^T, and rounding on their inverses.

    Measuring which ranges are needed takes a quarter of a pass, within the error of this.
    """
    backbone = spec.backbone
    hidden, wide = backbone.hidden_size, backbone.intermediate_size
    passes = 4 * _tokens(recipe) * _layer_parameters(spec)
    energies = _tokens(recipe) * (3 * hidden**2 + wide**2)  # half of each is enough
    inverses = 5 * hidden**3 + wide**3
    rounding = 2 * hidden * _layer_parameters(spec) + 2 * hidden * wide**2
    return int(backbone.num_layers * (passes + energies + inverses + rounding))


def _harm_bytes(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Return the states of few texts thrice, a block and its codes, and a batch's gradients."""
    backbone = spec.backbone
    states = 3 * _few_tokens(recipe) * backbone.hidden_size
    feed = spec.pooler.feed_width if spec.pooler.pooling.has_weights else 0
    block = max(_layer_parameters(spec), 3 * feed * backbone.hidden_size)
    return int(4 * (states + _batch_values(spec, recipe)) + (4 + 1) * block)


def _harm_flops(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Return three passes of few texts, one of them rounded, and one backward."""
    passes = 2 * (3 + 2) * _few_tokens(recipe) * _layer_parameters(spec)
    return int(spec.backbone.num_layers * passes)


def _batch_values(spec: ModelSpec, recipe: ExportRecipe) -> int:
    tokens = BATCH_TEXTS * recipe.calibration_tokens
    return tokens * _BATCH_COPIES * spec.backbone.intermediate_size


def _few_tokens(recipe: ExportRecipe) -> float:
    return FEW_BATCHES * BATCH_TEXTS * _TOKENS_OF_LIMIT * recipe.calibration_tokens


def _layer_parameters(spec: ModelSpec) -> int:
    backbone = spec.backbone
    heads = backbone.head_width * (2 * backbone.num_heads + 2 * backbone.num_kv_heads)
    return backbone.hidden_size * (heads + 3 * backbone.intermediate_size)


def _tokens(recipe: ExportRecipe) -> float:
    return _TOKENS_OF_LIMIT * recipe.calibration_texts * recipe.calibration_tokens


def folder_bytes(planned: Export) -> int:
    """Return the artifact's size: the weights to the byte, what lies beside them nearly."""
    tokenizer = planned.checkpoint.tokenizer
    is_built = tokenizer.suffix == ".gguf"
    vocabulary = planned.checkpoint.spec.backbone.vocab_size
    copies = 1 if planned.recipe.engine is None else 2
    kept = _KEPT_BYTES[planned.recipe.kernels]
    return int(
        planned.num_bytes * (1 + kept * planned.recipe.keep_share) * copies
        + _WEIGHT_BYTES * len(planned.block.weights)
        + _NODE_BYTES * len(planned.block.builder.nodes)
        + (_TOKEN_BYTES * vocabulary if is_built else tokenizer.stat().st_size)
        + _JSON_BYTES
    )
