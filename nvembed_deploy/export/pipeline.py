"""This file owns the order of an export's steps, and nothing else.

checkpoint -> merged weights -> graph -> weight file -> self-check -> manifest -> artifact.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from nvembed_deploy.checkpoint import write_tokenizer
from nvembed_deploy.engine_record import Profile
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.block_cache import BlockCache, open_cache
from nvembed_deploy.export.calibration_record import CalibrationRecord
from nvembed_deploy.export.calibration_texts import Calibration
from nvembed_deploy.export.check import CheckReport, Subject, check_graph
from nvembed_deploy.export.engine import build_engine, probe
from nvembed_deploy.export.engine_profiles import choose_profiles
from nvembed_deploy.export.graph import INPUTS, Block, author_graph
from nvembed_deploy.export.hf_files import write_hf_files
from nvembed_deploy.export.linear_weights import LinearWeights, open_linears
from nvembed_deploy.export.measured import Measure, OnBlock, open_questions
from nvembed_deploy.export.plan import (
    Export,
    check_out,
    device_of,
    graph_options,
    unrounded_weights,
)
from nvembed_deploy.export.progress import Progress, SilentProgress
from nvembed_deploy.export.provenance import source_of, tool_versions
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.export.rotation import RotatedWeights, Rotation
from nvembed_deploy.export.weight_file import (
    LINEAR,
    Quantizer,
    WeightFile,
    write_weights,
)
from nvembed_deploy.spec import MIN_TOKENS, ModelSpec, PoolerForm
from nvembed_deploy.text import Batch, Tokenizer

_LINEAR_NAMES = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8e4m3fn": "fp8",
}


def run_export(
    export: Export, out_dir: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write the artifact; it appears whole, or not at all.

    Raises:
        ArtifactError: `out_dir` exists, cannot be written, or holds what the export reads.
        CheckpointError: a tensor cannot be used.
        GateError: the written graph does not agree with the checkpoint.
        HardwareError, MissingPackageError, RecipeError: the engine cannot be built.
    """
    check_out(export, out_dir)
    if export.recipe.engine is not None:
        probe(export.recipe.engine, export.graph_facts)
    progress = progress or SilentProgress()
    with ExitStack() as held:  # the cache too, until the artifact is there
        with staged_artifact(out_dir, overwrite=overwrite) as stage:
            _write_text_files(export, stage)
            profiles = _profiles(export, stage)
            batches = _batches(export, stage)
            export = _answered(export, batches, progress)
            cache = held.enter_context(open_cache(export))
            file = _write_weights(export, stage, batches, cache, progress)
            manifest = _write_rest(export, file, stage, progress)
            if export.recipe.engine is not None:
                with progress.step("engine", 100) as advance:
                    built = build_engine(stage, INPUTS, export.recipe.engine, profiles, advance)
                manifest = replace(manifest, engines={built.name: built.record})
                manifest = add_file_record(stage, manifest, built.name, built.sha256)
            manifest = write_manifest(stage, manifest)
        if cache is not None:
            cache.remove()
    return manifest


def _batches(export: Export, stage: Path) -> list[Batch]:
    """Return the texts that rounding or a measurement sees; none where neither is to be done."""
    recipe = export.recipe
    is_used = recipe.is_calibrated or open_questions(recipe)
    return _texts(recipe).batches(_tokenizer(export, stage)) if is_used else []


def _answered(export: Export, batches: Sequence[Batch], progress: Progress) -> Export:
    """Return the export with all that its recipe leaves to measurement."""
    blocks = export.checkpoint.spec.backbone.num_layers + 1
    for name, measure in open_questions(export.recipe):
        with progress.step(name, blocks) as advance:
            export = _measured(export, batches, measure, partial(advance, 1))
    return export


def _write_rest(export: Export, file: WeightFile, stage: Path, progress: Progress) -> Manifest:
    """Write the graph and check it; return the manifest, which is not written yet."""
    with progress.step("graph", None):
        _write_graph(export.block, file, stage / LAYOUT.graph)
    with progress.step("self-check", export.checkpoint.spec.backbone.num_layers + 2) as advance:
        report = _check(export, file, stage, partial(advance, 1))
    manifest = _manifest(export, file, report)
    return add_file_record(stage, manifest, LAYOUT.weights, file.sha256)


def _profiles(export: Export, stage: Path) -> tuple[Profile, ...]:
    options, spec = export.recipe.engine, export.checkpoint.spec
    if options is None:
        return ()
    return choose_profiles(options, export.graph_facts, spec, _tokenizer(export, stage))


def _write_text_files(export: Export, stage: Path) -> None:
    """Write tokenizer and Hugging Face configs, under the names other tools look for."""
    spec = export.checkpoint.spec
    write_tokenizer(export.checkpoint, stage / LAYOUT.tokenizer)
    _check_prompts(spec, _tokenizer(export, stage))
    write_hf_files(stage, spec)


def _check_prompts(spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """Refuse a prompt that leaves no room for a text."""
    for name, prefix in spec.prompts.items():
        (tokens,) = tokenizer.tokenize([""], prompt=prefix, max_tokens=sys.maxsize)
        if tokens.num_masked + MIN_TOKENS > spec.text.max_tokens:
            raise RecipeError(
                f"prompt {name!r} has {tokens.num_masked} tokens, and texts are cut after "
                f"{spec.text.max_tokens}, prompt included",
                "shorten it, or raise max_tokens",
            )


def _measured(
    export: Export, batches: Sequence[Batch], measure: Measure, on_block: OnBlock
) -> Export:
    """Return the export with an open question of its recipe answered, and its graph written so."""
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


def _write_weights(
    export: Export,
    stage: Path,
    batches: Sequence[Batch],
    cache: BlockCache | None,
    progress: Progress,
) -> WeightFile:
    path, entries = stage / LAYOUT.weights, export.block.weights
    if cache is not None and cache.count:
        progress.note(f"going on from {cache.count} blocks in {cache.folder}")
    with _open_linears(export) as linears:
        quantizer = _quantizer(export, batches, linears, cache)
        with progress.step("weights", export.num_bytes) as advance:
            file = write_weights(path, entries, linears, quantizer, on_bytes=advance)
    if quantizer is not None and export.recipe.is_calibrated:
        source, ranges = source_of(export.checkpoint)["sha256"], dict(quantizer.ranges)
        facts = _texts(export.recipe).facts(batches)
        record = CalibrationRecord(source, export.recipe.rotation, facts, ranges)
        record.write(stage / LAYOUT.calibration)
    return file


def _quantizer(
    export: Export, batches: Sequence[Batch], linears: LinearWeights, cache: BlockCache | None
) -> Quantizer | None:
    """Return what rounds the linears, if anything does."""
    recipe = export.recipe
    if recipe.formats.linear is None:
        return None
    if not recipe.is_calibrated:
        from nvembed_deploy.export.nearest import NearestQuantizer

        ranges = export.calibration.ranges if export.calibration else {}
        return NearestQuantizer(linears, recipe.formats, ranges)
    from nvembed_deploy.export.blocks import Blocks
    from nvembed_deploy.export.calibrate import CompensatingQuantizer

    return CompensatingQuantizer(Blocks(linears, recipe.formats, batches, device_of(recipe)), cache)


def _write_graph(block: Block, file: WeightFile, path: Path) -> None:
    model = block.builder.model(block.inputs, block.output, block.opset, file.data)
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def _tokenizer(export: Export, stage: Path) -> Tokenizer:
    spec = export.checkpoint.spec
    return Tokenizer.load(stage / LAYOUT.tokenizer, spec.text, spec.backbone.vocab_size)


def _check(export: Export, file: WeightFile, stage: Path, on_block: OnBlock) -> CheckReport:
    hidden, recipe = export.checkpoint.spec.backbone.hidden_size, export.recipe
    rotation = Rotation(hidden, recipe.seed) if recipe.rotates else None
    subject = Subject(export.options, file.data, _tokenizer(export, stage), rotation)
    return check_graph(export.weights, subject, on_block)


def _num_parameters(export: Export) -> int:
    """Return how many the graph has before rounding: no scales, no codes that linears have more."""
    entries = unrounded_weights(export.checkpoint.spec, export.options)
    return sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in entries)


def _manifest(export: Export, file: WeightFile, report: CheckReport) -> Manifest:
    entries = export.block.weights
    linears = Counter(entry.dtype.name.lower() for entry in entries if entry.name.endswith(LINEAR))
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
