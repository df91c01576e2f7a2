"""This file owns the order of an export's steps, and nothing else.

checkpoint -> merged weights -> graph -> weight file -> self-check -> manifest -> artifact.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from nvembed_deploy.artifact import (
    LAYOUT,
    Manifest,
    WeightsSize,
    add_file_record,
    staged_artifact,
    write_manifest,
)
from nvembed_deploy.checkpoint import Checkpoint, open_checkpoint, write_tokenizer
from nvembed_deploy.engine_record import Profile
from nvembed_deploy.export.calibration_record import CalibrationRecord, TextFacts
from nvembed_deploy.export.calibration_texts import Calibration
from nvembed_deploy.export.check import CheckReport, Subject, check_graph
from nvembed_deploy.export.engine import build_engine, probe
from nvembed_deploy.export.engine_options import GraphFacts, check_engine
from nvembed_deploy.export.engine_profiles import choose_profiles
from nvembed_deploy.export.formats import Formats, Rounding
from nvembed_deploy.export.graph import INPUTS, Block, GraphOptions, author_graph
from nvembed_deploy.export.hf_files import write_hf_files
from nvembed_deploy.export.linear_weights import LinearWeights, open_linears
from nvembed_deploy.export.measured import Measure, OnBlock, open_questions
from nvembed_deploy.export.progress import Progress, SilentProgress
from nvembed_deploy.export.provenance import source_of, tool_versions
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.export.rotation import RotatedWeights, Rotation
from nvembed_deploy.export.weight_file import (
    INPUT_SCALE,
    OUTPUT_SCALE,
    Quantizer,
    WeightFile,
    write_weights,
)
from nvembed_deploy.model.weights import Weights, open_weights
from nvembed_deploy.spec import PoolerForm
from nvembed_deploy.text import Tokenizer

_LINEAR_NAMES = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8e4m3fn": "fp8",
}


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
        recipe, linear = self.recipe, self.recipe.formats.linear
        width = self.checkpoint.spec.backbone.head_width
        code = linear.code if linear else None
        return GraphFacts(recipe.precision, recipe.opset, width, code, recipe.fp8_attention)


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


def plan_export(checkpoint_path: Path, recipe: ExportRecipe) -> Export:
    """Open the checkpoint, check that it is complete, and author the graph.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        HardwareError: the device, or what the engine asked for needs, is not there.
        RecipeError: the engine asked for cannot be built.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    weights = open_weights(checkpoint)
    record = None if recipe.ranges is None else CalibrationRecord.read(Path(recipe.ranges))
    if record is not None and recipe.activations is None:
        recipe = replace(recipe, per_token=record.per_token)
    block = author_graph(checkpoint.spec, graph_options(recipe))
    if record is not None:
        _check_ranges(record, checkpoint, recipe, block)
    export = Export(checkpoint, weights, recipe, block, record)
    if recipe.engine is not None:
        check_engine(recipe.engine, export.graph_facts)
    if recipe.device != "cpu":
        _device(recipe)
    return export


def _check_ranges(
    record: CalibrationRecord, checkpoint: Checkpoint, recipe: ExportRecipe, block: Block
) -> None:
    static, outputs = (
        [e.name.removesuffix(tail) for e in block.weights if e.name.endswith(tail)]
        for tail in (INPUT_SCALE, OUTPUT_SCALE)
    )
    record.check(source_of(checkpoint)["sha256"], recipe.rotation, static, outputs)


def run_export(
    export: Export, out_dir: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write the artifact; it appears whole, or not at all.

    Raises:
        ArtifactError: `out_dir` exists, or cannot be written.
        CheckpointError: a tensor cannot be used.
        GateError: the written graph does not agree with the checkpoint.
        HardwareError, MissingPackageError, RecipeError: the engine cannot be built.
    """
    if export.recipe.engine is not None:
        probe(export.recipe.engine, export.graph_facts)
    progress = progress or SilentProgress()
    with staged_artifact(out_dir, overwrite=overwrite) as stage:
        _write_text_files(export, stage)
        profiles = _profiles(export, stage)
        blocks = export.checkpoint.spec.backbone.num_layers + 2
        for name, measure in open_questions(export.recipe):
            with progress.step(name, blocks - 1) as advance:
                export = _measured(export, stage, measure, partial(advance, 1))
        with progress.step("weights", export.num_bytes) as advance:
            file = _write_weights(export, stage, advance)
        with progress.step("graph", None):
            _write_graph(export.block, file, stage / LAYOUT.graph)
        with progress.step("self-check", blocks) as advance:
            report = _check(export, file, stage, partial(advance, 1))
        manifest = _manifest(export, file, report)
        manifest = add_file_record(stage, manifest, LAYOUT.weights, file.sha256)
        if export.recipe.engine is not None:
            with progress.step("engine", 100) as advance:
                built = build_engine(stage, INPUTS, export.recipe.engine, profiles, advance)
            manifest = replace(manifest, engines={built.name: built.record})
            manifest = add_file_record(stage, manifest, built.name, built.sha256)
        return write_manifest(stage, manifest)


def _profiles(export: Export, stage: Path) -> tuple[Profile, ...]:
    options, spec = export.recipe.engine, export.checkpoint.spec
    if options is None:
        return ()
    return choose_profiles(options, export.graph_facts, spec, _tokenizer(export, stage))


def _write_text_files(export: Export, stage: Path) -> None:
    """Write tokenizer and Hugging Face configs, under the names other tools look for."""
    spec = export.checkpoint.spec
    write_tokenizer(export.checkpoint, stage / LAYOUT.tokenizer)
    _tokenizer(export, stage)
    write_hf_files(stage, spec)


def _measured(export: Export, stage: Path, measure: Measure, on_block: OnBlock) -> Export:
    """Return the export with an open question of its recipe answered, and its graph written so."""
    batches = _texts(export.recipe).batches(_tokenizer(export, stage))
    with _open_linears(export) as linears:
        recipe = measure(export.recipe, linears, batches, on_block)
    block = author_graph(export.checkpoint.spec, graph_options(recipe))
    return replace(export, recipe=recipe, block=block)


def _open_linears(export: Export) -> AbstractContextManager[LinearWeights]:
    recipe, weights = export.recipe, export.weights
    if recipe.rotates:
        weights = RotatedWeights(weights, recipe.seed, recipe.kernels)
    return open_linears(weights, is_folded=recipe.pooler is PoolerForm.FOLDED)


def _texts(recipe: ExportRecipe) -> Calibration:
    path = Path(recipe.calibration) if recipe.calibration else None
    return Calibration(path, recipe.calibration_texts, recipe.calibration_tokens, recipe.seed)


def _write_weights(export: Export, stage: Path, advance: Callable[[int], None]) -> WeightFile:
    with _open_linears(export) as linears:
        quantizer, facts = _quantizer(export, stage, linears)
        path = stage / LAYOUT.weights
        file = write_weights(path, export.block.weights, linears, quantizer, on_bytes=advance)
    if quantizer is not None and facts is not None:
        source, ranges = source_of(export.checkpoint)["sha256"], dict(quantizer.ranges)
        record = CalibrationRecord(source, export.recipe.rotation, facts, ranges)
        record.write(stage / LAYOUT.calibration)
    return file


def _quantizer(
    export: Export, stage: Path, linears: LinearWeights
) -> tuple[Quantizer | None, TextFacts | None]:
    """Return what rounds the linears, and what it is calibrated on, if it is."""
    recipe = export.recipe
    if recipe.formats.linear is None:
        return None, None
    if recipe.rounding is Rounding.NEAREST:
        from nvembed_deploy.export.nearest import NearestQuantizer

        ranges = export.calibration.ranges if export.calibration else {}
        return NearestQuantizer(linears, recipe.formats, ranges), None
    from nvembed_deploy.export.calibrate import CompensatingQuantizer

    texts = _texts(recipe)
    batches = texts.batches(_tokenizer(export, stage))
    quantizer = CompensatingQuantizer(linears, recipe.formats, batches, _device(recipe))
    return quantizer, texts.facts(batches)


def _device(recipe: ExportRecipe) -> Any:  # noqa: ANN401 - torch is imported late
    from nvembed_deploy.model.device import find_device

    return find_device(recipe.device)


def _write_graph(block: Block, file: WeightFile, path: Path) -> None:
    model = block.builder.model(block.inputs, block.output, block.opset, file.data)
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def _tokenizer(export: Export, stage: Path) -> Tokenizer:
    spec = export.checkpoint.spec
    return Tokenizer.load(stage / LAYOUT.tokenizer, spec.text, spec.backbone.vocab_size)


def _check(export: Export, file: WeightFile, stage: Path, on_block: Any) -> CheckReport:  # noqa: ANN401
    hidden, recipe = export.checkpoint.spec.backbone.hidden_size, export.recipe
    rotation = Rotation(hidden, recipe.seed) if recipe.rotates else None
    subject = Subject(export.options, file.data, _tokenizer(export, stage), rotation)
    return check_graph(export.weights, subject, on_block)


def _num_parameters(export: Export) -> int:
    """Return how many the graph has before rounding: no scales, no codes that linears have more."""
    floats = replace(export.options, formats=Formats(), fp8_attention=False)
    entries = author_graph(export.checkpoint.spec, floats).weights
    return sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in entries)


def _manifest(export: Export, file: WeightFile, report: CheckReport) -> Manifest:
    entries = export.block.weights
    linears = Counter(
        entry.dtype.name.lower() for entry in entries if entry.name.endswith(".weight_t")
    )
    return Manifest(
        spec=export.checkpoint.spec,
        precision=export.recipe.precision,
        opset=export.recipe.opset,
        pooler_form=export.recipe.pooler,
        linears={_LINEAR_NAMES.get(kind, kind): count for kind, count in linears.items()},
        weights=WeightsSize(
            num_parameters=_num_parameters(export),
            bytes=file.num_bytes,
        ),
        recipe=export.recipe.to_dict(),
        source=source_of(export.checkpoint),
        tools=tool_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        check=report.to_dict(),
    )
