"""This file owns compiling an engine into an artifact that exists: one at a time, then recorded.

The artifact is in use meanwhile: a reader sees the old manifest or the new one, and a plan that is
not in the manifest is nobody's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from nvembed_deploy.artifact import LAYOUT, open_artifact, read_manifest, record_engine
from nvembed_deploy.artifact_lock import is_writable, sole_writer, unreplaced
from nvembed_deploy.engine_record import EngineRecord, Flavour, Profile
from nvembed_deploy.export.engine import build_engine, engine_name, probe
from nvembed_deploy.export.engine_options import EngineOptions, GraphFacts, check_engine
from nvembed_deploy.export.engine_profiles import choose_profiles
from nvembed_deploy.export.formats import SCHEMES
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
    options = _as_listed(options, read_manifest(path))
    check_engine(options, facts)
    name = engine_name(options, version := probe(options, facts))
    if not overwrite and not is_writable(path):  # what needs no compiling needs no leave to write
        there, _ = _there(path, options, name, version)
        if there:
            return name, there, False
    with _sole_compiler(path):
        there, profiles = _there(path, options, name, version)
        if there and not overwrite:
            return name, there, False
        return *_add(path, name, options, profiles, advance), True


def _as_listed(options: EngineOptions, manifest: Manifest) -> EngineOptions:
    """Return the options with their targets in the order of an engine that is for the same ones.

    Its name has them in that order, which once was the order given.
    """
    for record in manifest.engines.values():
        if record.flavour is options.flavour and {*record.targets} == {*options.targets}:
            return replace(options, targets=record.targets)
    return options


def _there(
    path: Path, options: EngineOptions, name: str, version: str
) -> tuple[EngineRecord | None, tuple[Profile, ...]]:
    """Return the record of the engine asked for, if it is there; and the profiles asked for."""
    artifact = open_artifact(path)
    spec = artifact.manifest.spec
    tokenizer = Tokenizer.load(artifact.tokenizer, spec.text, spec.backbone.vocab_size)
    profiles = choose_profiles(options, graph_facts(artifact.manifest), spec, tokenizer)
    record = artifact.manifest.engines.get(name)
    fits = record and record.version == version and is_as_asked(record, options, profiles)
    return record if fits else None, profiles


def _add(
    path: Path,
    name: str,
    options: EngineOptions,
    profiles: tuple[Profile, ...],
    advance: Callable[[int], None],
) -> tuple[str, EngineRecord]:
    """Compile and record an engine; if either fails, the one of its name is what it was."""
    with unreplaced(path) as check, _second_name(path / name) as old:
        built = build_engine(path, _INPUTS, options, profiles, advance)
        check()
        try:
            record_engine(path, built.name, built.record, built.sha256)
        except BaseException:
            check()  # another artifact's plan is not ours to take away
            _put_back(old, path / built.name)
            raise
    return built.name, built.record


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
    scheme = SCHEMES.get(str(manifest.recipe.get("precision")))
    code = scheme.linear.code if scheme is not None else None
    width = manifest.spec.backbone.head_width
    fp8_attention = manifest.recipe.get("fp8_attention") is True
    return GraphFacts(manifest.precision, manifest.opset, width, code, fp8_attention)


@contextmanager
def _sole_compiler(path: Path) -> Iterator[None]:
    """Wait until no other process compiles into the artifact, and remove what a killed one left.

    That is plans under names of ours which the manifest does not list: whoever writes one holds
    the lock until it is listed.
    """
    with sole_writer(path):
        listed = read_manifest(path).files
        for pattern in (".partial-*.plan", *(f"{flavour}-*.plan" for flavour in Flavour)):
            for plan in (path / LAYOUT.engines).glob(pattern):
                if plan.relative_to(path).as_posix() not in listed:
                    plan.unlink(missing_ok=True)
        yield


@contextmanager
def _second_name(plan: Path) -> Iterator[Path]:
    """Yield a second name of a plan, which keeps it while another takes its place.

    Nothing has that name where no plan is there, or the disk knows no second names.
    """
    kept = plan.with_name(f".partial-old-{os.getpid()}.plan")
    with suppress(OSError):
        kept.hardlink_to(plan)
    try:
        yield kept
    finally:
        kept.unlink(missing_ok=True)


def _put_back(old: Path, plan: Path) -> None:
    """Take away a plan that was not recorded; the manifest says what the old one is."""
    if old.exists():
        old.replace(plan)
    else:
        plan.unlink(missing_ok=True)
