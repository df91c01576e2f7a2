"""This file owns the run of a parity check: both sides opened, every task, then the verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import hash_file
from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.basis import basis_of, manifest_of
from nvembed_deploy.parity.embedding import compare_embeddings
from nvembed_deploy.parity.margins import MARGINS, precision_of
from nvembed_deploy.parity.subject import Advance, Subject, Text
from nvembed_deploy.parity.suite import LocalTask, count_texts
from nvembed_deploy.parity.trace import trace
from nvembed_deploy.parity.verdict import TaskParity, Verdict, compare_task, decide
from nvembed_deploy.runtimes import load_encoder
from nvembed_deploy.runtimes.encoder import Encoder

DEFAULT_CACHE = Path("build/parity-cache")
_COMPARED = 3000
"""Texts whose embeddings are compared, of all that the tasks use."""


@dataclass(frozen=True)
class Side:
    """Which model, and what computes it."""

    path: Path
    runtime: str = "auto"
    device: str | None = None


@dataclass(frozen=True)
class Tasks:
    """What is measured: local tasks, and tasks or benchmarks by mteb's names."""

    local: Sequence[LocalTask] = ()
    named: Sequence[str] = ()
    suite: str = ""
    """What the local tasks' suite is called."""

    @property
    def texts(self) -> int:
        """How many texts the local tasks embed on each side."""
        return sum(count_texts(task) for task in self.local)


@dataclass(frozen=True)
class Options:
    """How a check is run."""

    cache: Path = DEFAULT_CACHE
    seed: int = 0
    margin: float | None = None
    """Instead of the precision's own."""
    trace: bool = False
    """Compare the states after each layer too."""


def check_parity(
    candidate: Side, reference: Side, tasks: Tasks, options: Options, advance: Advance
) -> Verdict:
    """Measure both sides on all tasks and decide.

    Raises:
        NVEmbedError: a side cannot be opened, the two do not fit, or a task cannot be had.
        MissingPackageError: mteb is not installed.
    """
    from nvembed_deploy.parity.mteb_encoder import local_task, named_tasks, run_task

    precision = precision_of(manifest_of(candidate.path))
    margins = MARGINS[precision]
    if options.margin is not None:
        margins = replace(margins, score=options.margin)
    # Each side has tasks of its own: a task's random numbers go on where its last run ended.
    named = [named_tasks(tasks.named) for _ in range(2)]
    prepared = [[local_task(task) for task in tasks.local] + fetched for fetched in named]
    revisions = {task.metadata.name: str(task.metadata.revision) for task in named[0]}
    basis = basis_of(reference.path, tasks.suite, tasks.local, revisions)
    with ExitStack() as stack:
        ours, theirs = (
            open_subject(name, side, options.cache, stack)
            for name, side in (("candidate", candidate), ("reference", reference))
        )
        _check_widths(ours, theirs)
        ours.advance = theirs.advance = advance
        found: list[TaskParity] = []
        for our_task, their_task in zip(*prepared, strict=True):
            expected, measured = run_task(their_task, theirs), run_task(our_task, ours)
            found.append(compare_task(measured, expected, margins.score, options.seed))
        embedding = compare_embeddings(ours, theirs, _sample(list(theirs.seen)))
        verdict = decide(found, embedding, margins, precision)
    verdict = replace(verdict, basis=basis)
    if options.trace:
        return replace(verdict, trace=trace(candidate.path, reference.path, precision))
    return verdict


def _sample(texts: list[Text]) -> list[Text]:
    """Return at most `_COMPARED` texts, spread over all tasks."""
    step = max(1, -(-len(texts) // _COMPARED))
    return texts[::step]


def open_subject(name: str, side: Side, cache: Path, stack: ExitStack) -> Subject:
    """Open one side; the stack closes it. A checkpoint runs as it was trained by default."""
    is_trained = side.runtime == "auto" and manifest_of(side.path) is None
    runtime = "reference" if is_trained else side.runtime
    encoder = stack.enter_context(load_encoder(side.path, runtime, device=side.device))
    return Subject.open(name, encoder, cache / model_key(side, encoder))


def model_key(side: Side, encoder: Encoder) -> str:
    """Return a name that changes with anything that changes a model's embeddings."""
    manifest = manifest_of(side.path)
    if manifest is not None:
        what: Any = {name: record.sha256 for name, record in manifest.files.items()}
    else:
        what = {
            str(p.relative_to(side.path)): [p.stat().st_size, p.stat().st_mtime_ns]
            for p in sorted(side.path.rglob("*"))
            if p.is_file()
        }
        description = side.path / "checkpoint.json"
        what["description"] = hash_file(description) if description.exists() else ""
    content = json.dumps([what, encoder.runtime.name, encoder.runtime.device], sort_keys=True)
    return f"{side.path.resolve().name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _check_widths(ours: Subject, theirs: Subject) -> None:
    widths = [s.encoder.get_embedding_dimension() for s in (ours, theirs)]
    if widths[0] != widths[1]:
        raise InputError(
            f"embeddings have {widths[0]} numbers, the reference's {widths[1]}",
            "compare an artifact with the checkpoint it was exported from",
        )
