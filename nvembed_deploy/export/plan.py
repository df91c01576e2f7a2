"""This file owns a planned export: the checkpoint opened, the graph authored, nothing written."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import open_artifact
from nvembed_deploy.checkpoint import Checkpoint, open_checkpoint
from nvembed_deploy.errors import ArtifactError, RecipeError
from nvembed_deploy.export.builder import WeightEntry
from nvembed_deploy.export.calibration_record import CalibrationRecord
from nvembed_deploy.export.calibration_texts import read_texts
from nvembed_deploy.export.engine_options import GraphFacts, check_engine
from nvembed_deploy.export.formats import SCHEMES, Code, Formats, check_patterns
from nvembed_deploy.export.graph import Block, GraphOptions, author_graph
from nvembed_deploy.export.provenance import source_of
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.export.rotation import feature_block
from nvembed_deploy.export.weight_file import INPUT_SCALE, LINEAR, OUTPUT_SCALE
from nvembed_deploy.model.weights import Weights, open_weights
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.staging import refuse_inside
from nvembed_deploy.text import fault_of


@dataclass(frozen=True)
class Export:
    """A planned export: everything is read and validated, nothing is written."""

    checkpoint: Checkpoint
    weights: Weights
    recipe: ExportRecipe
    block: Block
    calibration: CalibrationRecord | None = None
    """Ranges found by an earlier export of this checkpoint."""

    @property
    def num_bytes(self) -> int:
        """Size of the weight file, without its header."""
        return sum(entry.num_bytes for entry in self.block.weights)

    @property
    def options(self) -> GraphOptions:
        """How the graph is written."""
        return graph_options(self.recipe)

    @property
    def graph_facts(self) -> GraphFacts:
        """What decides whether an engine can be built."""
        return facts_of(self.recipe, self.checkpoint.spec)


def graph_options(recipe: ExportRecipe) -> GraphOptions:
    """Return how a recipe's graph is written."""
    return GraphOptions(
        recipe.precision,
        recipe.opset,
        recipe.pooler,
        formats=recipe.formats,
        rotates=recipe.rotates,
        kernels=recipe.kernels,
        fp8_attention=recipe.fp8_attention,
    )


def facts_of(recipe: ExportRecipe, spec: ModelSpec) -> GraphFacts:
    """Return what decides whether an engine of a recipe's graph can be built."""
    linear, width = recipe.formats.linear, spec.backbone.head_width
    code = linear.code if linear else None
    return GraphFacts(recipe.precision, recipe.opset, width, code, recipe.fp8_attention)


def plan_export(checkpoint_path: Path, recipe: ExportRecipe) -> Export:
    """Open the checkpoint, check that it is complete, and author the graph.

    Raises:
        ArtifactError: there are no such ranges, or their artifact is not as its manifest says.
        CheckpointError: the checkpoint cannot be used.
        HardwareError: the device, or what the engine asked for needs, is not there.
        RecipeError: the engine asked for cannot be built, a pattern means no linear, linears
            cannot be rounded in blocks, or texts cannot be read.
    """
    checkpoint = _as_asked(open_checkpoint(checkpoint_path), recipe)
    weights = open_weights(checkpoint)
    record = None if recipe.ranges is None else CalibrationRecord.read(Path(recipe.ranges))
    if record is not None and recipe.activations is None:
        recipe = replace(recipe, per_token=record.per_token)
    _check_blocks(recipe, checkpoint.spec)
    block = author_graph(checkpoint.spec, graph_options(recipe))
    if record is not None:
        _check_ranges(record, checkpoint, recipe, block)
    _check_patterns(recipe, block)
    export = Export(checkpoint, weights, recipe, block, record)
    if recipe.engine is not None:
        check_engine(recipe.engine, export.graph_facts)
    if recipe.device != "cpu":
        device_of(recipe)
    _read_texts(recipe)
    return export


def _as_asked(checkpoint: Checkpoint, recipe: ExportRecipe) -> Checkpoint:
    """Return a checkpoint that takes texts as the recipe says."""
    spec = checkpoint.spec
    most, asked = spec.backbone.max_positions, recipe.max_tokens or spec.text.max_tokens
    if asked > most:
        raise RecipeError(
            f"max_tokens is {asked}, and the decoder has {most} positions", "ask for fewer"
        )
    text = replace(spec.text, max_tokens=asked)
    prompts = spec.prompts | recipe.prompts
    return replace(checkpoint, spec=replace(spec, text=text, prompts=prompts))


def check_out(export: Export, out_dir: Path) -> None:
    """Refuse a folder for the artifact that holds what is read for it, or that nothing can read.

    Raises:
        ArtifactError: it does, or its path is not UTF-8.
    """
    if fault_of(str(out_dir.resolve())):
        raise ArtifactError(
            f"{str(out_dir)!a} is no UTF-8 path, which no tokenizer and no graph is read from",
            "choose a folder whose path is UTF-8",
        )
    checkpoint, recipe, engine = export.checkpoint, export.recipe, export.recipe.engine
    tensors = (*checkpoint.backbone.values(), *checkpoint.pooler.values())
    paths = dict.fromkeys(tensor.path for tensor in tensors)
    parts = [("adapter", checkpoint.adapter), ("tokenizer", checkpoint.tokenizer)]
    files = [(key, getattr(recipe, key)) for key in ("calibration", "ranges", "cache")]
    files += [(key, getattr(engine, key, None)) for key in ("profile_from", "timing_cache")]
    weights = [("checkpoint's file", path) for path in paths]
    refuse_inside(out_dir, [("checkpoint", checkpoint.path), *parts, *weights, *files])


def unrounded_weights(spec: ModelSpec, options: GraphOptions) -> list[WeightEntry]:
    """Return the weights that a graph has before rounding: no scales, no codes of inputs."""
    floats = replace(options, formats=Formats(), fp8_attention=False)
    return author_graph(spec, floats).weights


def _check_blocks(recipe: ExportRecipe, spec: ModelSpec) -> None:
    linear = recipe.formats.linear
    if linear is None or linear.block is None:
        return
    entries = unrounded_weights(spec, graph_options(recipe))
    shapes = {e.name.removesuffix(LINEAR): e.shape for e in entries if e.name.endswith(LINEAR)}
    recipe.formats.check_blocks({name: shape[0] for name, shape in shapes.items()})
    for name, (num_inputs, num_outputs) in shapes.items():
        form = recipe.formats.of(name, num_inputs)
        if num_outputs % 2 and form is not None and form.code is Code.INT4:
            raise RecipeError(
                f"{name} has {num_outputs} outputs, an odd number: 4-bit values lie two in a byte",
                f"keep it in 8 bit: --keep {name}",
            )


def _check_patterns(recipe: ExportRecipe, block: Block) -> None:
    names = [e.name.removesuffix(LINEAR) for e in block.weights if e.name.endswith(LINEAR)]
    check_patterns("keep", recipe.keep, names)
    check_patterns("per_token", recipe.per_token or (), names)


def _check_ranges(
    record: CalibrationRecord, checkpoint: Checkpoint, recipe: ExportRecipe, block: Block
) -> None:
    there = str(open_artifact(Path(str(recipe.ranges))).manifest.recipe.get("precision"))
    static, outputs = (
        [e.name.removesuffix(tail) for e in block.weights if e.name.endswith(tail)]
        for tail in (INPUT_SCALE, OUTPUT_SCALE)
    )
    record.check(source_of(checkpoint)["sha256"], recipe.rotation, static, outputs)
    if static and _unit_of(there, recipe, checkpoint.spec) != _unit_of(
        recipe.label, recipe, checkpoint.spec
    ):
        raise RecipeError(
            f"ranges cannot be used again: {there} has other codes than {recipe.label}, or "
            "rotates features in other blocks",
            f"remove ranges, so that the export is calibrated; or name an artifact of "
            f"{recipe.label}",
        )


def _unit_of(label: str, recipe: ExportRecipe, spec: ModelSpec) -> tuple[Code, int] | None:
    """Return what a precision's ranges are of: codes, of so many features rotated together."""
    scheme = SCHEMES.get(label)
    if scheme is None:
        return None
    return scheme.linear.code, feature_block(spec, scheme.kernels) if recipe.rotates else 0


def _read_texts(recipe: ExportRecipe) -> None:
    """Find what is wrong with a user's texts now, not after the float graph was written."""
    engine = recipe.engine
    files = {"calibration": recipe.calibration, "profile_from": engine and engine.profile_from}
    for role, path in files.items():
        if path:
            deque(read_texts(Path(path), role), maxlen=0)


def device_of(recipe: ExportRecipe) -> Any:  # noqa: ANN401 - torch is imported late
    """Return where calibration computes."""
    from nvembed_deploy.model.device import find_device

    return find_device(recipe.device)
