"""This file owns compiling an engine into an artifact that exists: one at a time, then recorded.

The artifact is in use meanwhile: a reader sees the old manifest or the new one, and a plan that is
not in the manifest is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed_deploy.artifact import LAYOUT, open_artifact, record_engine
from nvembed_deploy.artifact_lock import sole_writer
from nvembed_deploy.engine_record import EngineRecord, Profile
from nvembed_deploy.export.engine import build_engine, engine_name, probe
from nvembed_deploy.export.engine_options import EngineOptions, GraphFacts, check_engine
from nvembed_deploy.export.engine_profiles import choose_profiles
from nvembed_deploy.export.formats import Code
from nvembed_deploy.manifest import Manifest
from nvembed_deploy.text import Tokenizer

_INPUTS = ("input_ids", "attention_mask", "pool_mask")
"""Source: docs/artifact.md, the graph."""


def add_engine(
    path: Path,
    options: EngineOptions,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[str, EngineRecord, bool]:
    """Compile an artifact's graph into the artifact, unless it holds the engine asked for already.

    One of that name which is not as asked is replaced.

    Args:
        path: an artifact folder; nobody else compiles into it meanwhile.
        options: what to compile.
        overwrite: compile anew what is there.
        advance: called with each per cent.

    Returns:
        The engine's name, its record, and whether it was compiled now.

    Raises:
        ArtifactError: it is no artifact, or cannot be written.
        HardwareError, MissingPackageError, RecipeError: the engine cannot be built.
    """
    facts = graph_facts(open_artifact(path).manifest)
    check_engine(options, facts)
    version = probe(options, facts)
    with _sole_compiler(path):
        artifact = open_artifact(path)
        name = engine_name(options, version)
        spec = artifact.manifest.spec
        tokenizer = Tokenizer.load(artifact.tokenizer, spec.text, spec.backbone.vocab_size)
        profiles = choose_profiles(options, facts, spec, tokenizer)
        there = None if overwrite else artifact.manifest.engines.get(name)
        if there and there.version == version and is_as_asked(there, options, profiles):
            return name, there, False
        built = build_engine(path, _INPUTS, options, profiles, advance)
        record_engine(path, built.name, built.record, built.sha256)
    return built.name, built.record, True


def is_as_asked(there: EngineRecord, options: EngineOptions, profiles: tuple[Profile, ...]) -> bool:
    """Say whether an engine that is there is one that the options mean.

    Options that say nothing mean any: so ask runtimes, which wait for whoever compiles meanwhile
    and must not replace what a user has asked for.

    Args:
        there: the record of an engine of the same name.
        options: what is asked.
        profiles: those that the options give; they count where some were asked for.
    """
    names_profiles = bool(options.profiles or options.profile_from)
    if names_profiles and there.profiles != profiles:
        return False
    return not options.asked or there.options == options.asked


def graph_facts(manifest: Manifest) -> GraphFacts:
    """Return what decides whether an artifact's graph can be built."""
    code = next((code for code in Code if code.value in manifest.linears), None)
    width = manifest.spec.backbone.head_width
    fp8_attention = manifest.recipe.get("fp8_attention") is True
    return GraphFacts(manifest.precision, manifest.opset, width, code, fp8_attention)


@contextmanager
def _sole_compiler(path: Path) -> Iterator[None]:
    """Wait until no other process compiles into the artifact, and remove what a killed one left."""
    with sole_writer(path):
        for partial in (path / LAYOUT.engines).glob(".partial-*.plan"):
            partial.unlink()
        yield
