"""This file owns the run of a parity check: both sides opened, every task, then the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.basis import basis_of, manifest_of
from nvembed_deploy.parity.embedding import compare_embeddings
from nvembed_deploy.parity.margins import MARGINS, precision_of
from nvembed_deploy.parity.side import Side, open_subject
from nvembed_deploy.parity.subject import Advance, Subject
from nvembed_deploy.parity.suite import LocalTask, count_texts
from nvembed_deploy.parity.trace import trace
from nvembed_deploy.parity.verdict import TaskParity, Verdict, compare_task, decide
from nvembed_deploy.spec import Precision

DEFAULT_CACHE = Path("build/parity-cache")


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

    @property
    def known(self) -> int:
        """How many texts each side embeds; 0 where that is not known, as of mteb's own tasks."""
        return 0 if self.named else self.texts


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
    """Measure both sides on all tasks and decide; the trace first, which fails within minutes.

    Raises:
        NVEmbedError: a side cannot be opened, the two do not fit, or a task cannot be had.
        MissingPackageError: mteb is not installed.
    """
    from nvembed_deploy.parity.mteb_encoder import prepare, run_task

    precision = precision_of(manifest_of(candidate.path))
    margins = MARGINS[precision]
    if options.margin is not None:
        margins = replace(margins, score=options.margin)
    # Each side has tasks of its own: a task's random numbers go on where its last run ended.
    prepared = [prepare(tasks.local, tasks.named) for _ in range(2)]
    named = prepared[0][len(tasks.local) :]
    revisions = {task.metadata.name: str(task.metadata.revision) for task in named}
    basis = basis_of(reference.path, tasks.suite, tasks.local, revisions)
    basis.notes.extend(_dtype_notes(reference))
    traced = trace(candidate.path, reference.path, precision) if options.trace else None
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
        ours.advance = theirs.advance = lambda _: None  # those texts have been counted
        embedding = compare_embeddings(ours, theirs, list(theirs.seen.values()))
        verdict = decide(found, embedding, margins, precision)
    return replace(verdict, basis=basis, trace=traced)


def _dtype_notes(reference: Side) -> list[str]:
    """Return what is to be said of a reference that was rounded."""
    if reference.dtype in {None, Precision.FP32}:
        return []
    return [f"the reference was computed in {reference.dtype}: its rounding is in the differences"]


def _check_widths(ours: Subject, theirs: Subject) -> None:
    widths = [s.encoder.get_embedding_dimension() for s in (ours, theirs)]
    if widths[0] != widths[1]:
        raise InputError(
            f"embeddings have {widths[0]} numbers, the reference's {widths[1]}",
            "compare an artifact with the checkpoint it was exported from",
        )
