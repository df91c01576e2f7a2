"""This file owns the decision: every margin held, or which was not and by how much."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nvembed_deploy.parity.basis import Basis
from nvembed_deploy.parity.bootstrap import Interval, paired_interval
from nvembed_deploy.parity.embedding import EmbeddingParity
from nvembed_deploy.parity.margins import Margins
from nvembed_deploy.parity.scores import Items, TaskRun, count_rows, items_of
from nvembed_deploy.parity.trace import Trace

_DRIFT = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "fp8": 5e-2, "int8": 5e-2, "int4": 5e-2}
"""Most that a batch may move a number of an embedding: rounding of the format, no more."""


_FAR_MORE = 8
"""How many times as far from the reference: of 15 planted faults those that depend on the length
give 19 and more, the others at most 4.2 either way."""
_LENGTH = 1e-3
"""Most that an embedding's length may differ from 1."""
LEAST_ITEMS = 20
"""Fewest queries, pairs, examples or texts that show anything. Resamples of items that all lost
nothing lose nothing, so the interval of one query has no width. Of 20 at least one is hit by a loss
that hits one in seven, at 95 % ((6/7)^20 = 0.046); and percentile intervals of fewer are too
narrow."""


@dataclass(frozen=True)
class TaskParity:
    """One task's scores and the verdict on their difference."""

    name: str
    kind: str
    metric: str
    instruction: str
    reference: float
    candidate: float
    interval: Interval | None
    count: int
    """How many items were judged; rows of data where the items are unknown."""
    is_too_small: bool
    """Whether so few items show nothing."""
    passed: bool
    reason: str

    @property
    def difference(self) -> float:
        """Candidate minus reference."""
        return self.candidate - self.reference

    @property
    def between(self) -> str:
        """The interval of the difference, in words."""
        found = self.interval
        return f"{found.low:+.4f} .. {found.high:+.4f}" if found else "no interval"

    @property
    def is_defined(self) -> bool:
        """Whether both scores are numbers: of a truth that is the same everywhere none is."""
        return math.isfinite(self.candidate) and math.isfinite(self.reference)


@dataclass(frozen=True)
class Verdict:
    """The answer, and everything it rests on."""

    passed: bool
    reasons: list[str]
    """What failed, in words; empty if nothing did."""
    causes: list[str]
    """Where to look."""
    tasks: list[TaskParity]
    embedding: EmbeddingParity
    margins: Margins
    precision: str
    trace: Trace | None = None
    """Where the sides part, if it was asked for."""
    basis: Basis | None = None
    """Which reference and which tasks."""

    def summary(self) -> dict[str, Any]:
        """Return what the manifest keeps: the answer and its numbers, no texts."""
        embedding = asdict(self.embedding)
        for name in ("worst", "histogram"):
            del embedding[name]
        kept: dict[str, Any] = {
            "passed": self.passed,
            "reasons": self.reasons,
            "causes": self.causes,
            "precision": self.precision,
            "margins": asdict(self.margins),
            "tasks": {
                t.name: {
                    "metric": t.metric,
                    "reference": round(t.reference, 6),
                    "candidate": round(t.candidate, 6),
                    "interval": [t.interval.low, t.interval.high] if t.interval else None,
                    "count": t.count,
                    "passed": t.passed,
                }
                for t in self.tasks
            },
            "embedding": embedding,
            "trace": asdict(self.trace) if self.trace else None,
            **(asdict(self.basis) if self.basis else {}),
        }
        summary: dict[str, Any] = finite(kept)
        return summary


def finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON data with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare_task(candidate: TaskRun, reference: TaskRun, margin: float, seed: int) -> TaskParity:
    """Decide by non-inferiority: the interval's lower end is above minus the margin.

    So has to be the difference itself, which alone decides on a task whose items are unknown, and
    then the reason says so. Fewer than `LEAST_ITEMS`, an unknown number, or a score that is not
    defined do not pass.
    """
    interval, count, how = _judged(candidate, reference, seed)
    difference = candidate.score - reference.score
    lowest = min(interval.low, difference) if interval else difference
    is_too_small = count < LEAST_ITEMS
    passed = lowest >= -margin and not is_too_small  # nothing is at least NaN
    if is_too_small:
        how += f"; too few to show anything, {LEAST_ITEMS} are needed"
    elif not passed and difference >= -margin:
        how += "; too few to show it"
    found = TaskParity(
        name=reference.name,
        kind=reference.kind,
        metric=reference.metric,
        instruction=reference.instruction,
        reference=reference.score,
        candidate=candidate.score,
        interval=interval,
        count=count,
        is_too_small=is_too_small,
        passed=passed,
        reason=f"{difference:+.4f}, at least {lowest:+.4f} ({how}); margin -{margin:g}",
    )
    if found.is_defined:
        return found
    scores = f"artifact {candidate.score:g}, reference {reference.score:g}"
    return replace(found, reason=f"is not defined: {scores} ({how})", passed=False)


def _judged(candidate: TaskRun, reference: TaskRun, seed: int) -> tuple[Interval | None, int, str]:
    """Return the interval of the main score, how many items were judged, and both in words."""
    ours, theirs = items_of(candidate), items_of(reference)
    if ours is None or theirs is None or _sizes(ours) != _sizes(theirs):
        count = count_rows(reference)
        rows = f"of {count or 'an unknown number of'} rows"
        return None, count, f"no items: the difference alone, {rows}"
    return paired_interval(ours, theirs, seed), theirs.count, theirs.described


def _sizes(items: Items) -> list[int]:
    return [len(part.values) for part in items.parts]


def decide(
    tasks: list[TaskParity], embedding: EmbeddingParity, margins: Margins, precision: str
) -> Verdict:
    """Put tasks and embeddings together."""
    reasons = [f"{task.name}: {task.metric} {task.reason}" for task in tasks if not task.passed]
    reasons += _embedding_reasons(embedding, margins, precision)
    causes = likely_causes(embedding, margins) if reasons else []
    if any(not math.isfinite(task.reference) for task in tasks):
        causes.append("a score needs truth that differs from item to item")
    if any(task.is_too_small for task in tasks):
        causes.append(
            f"tasks of at least {LEAST_ITEMS} queries, pairs, examples or texts are needed"
        )
    return Verdict(not reasons, reasons, causes, tasks, embedding, margins, precision)


def _embedding_reasons(found: EmbeddingParity, margins: Margins, precision: str) -> list[str]:
    floor, drift = margins.mean_cosine, _DRIFT[precision]
    lowest = -1.0 if margins.min_cosine is None else margins.min_cosine
    most = np.inf if margins.median_abs is None else margins.median_abs
    reasons = {
        f"mean cosine {found.mean_cosine:.6f}, expected {floor}": found.mean_cosine < floor,
        f"lowest cosine {found.min_cosine:.6f}, expected {lowest}": found.min_cosine < lowest,
        f"half of the texts move by more than {found.median_abs:.1e}, expected at most "
        f"{most:.0e}": found.median_abs > most,
        f"an embedding moves by {found.batch_drift:.1e} with its batch, expected at most "
        f"{drift:.0e}": found.batch_drift > drift,
        f"a long text: cosine {found.long_cosine:.6f}, expected {floor}": found.long_cosine < floor,
        f"a cut text: cosine {found.cut_cosine:.6f}, expected {floor}": found.cut_cosine < floor,
        f"lengths are off by {found.norm_drift:.1e}, expected at most {_LENGTH:g}": (
            found.norm_drift > _LENGTH
        ),
    }
    return [reason for reason, is_broken in reasons.items() if is_broken]


def _is_mostly(cosine: float, other: float) -> bool:
    """Tell whether one kind of text is farther off than the other by more than chance gives."""
    return 1 - cosine > _FAR_MORE * max(1 - other, 1e-7)


def likely_causes(found: EmbeddingParity, margins: Margins) -> list[str]:
    """Say where to look, from which kinds of texts agree and which do not."""
    floor = margins.mean_cosine
    plain, instructed = found.plain_cosine, found.instructed_cosine
    signs = {
        "the output is not normalised": found.norm_drift > _LENGTH,
        "only texts with an instruction differ: template, pool mask (instruction tokens must be "
        "attended and not pooled), or their count": plain >= floor > instructed,
        "long texts differ most: sliding window, rope base, position limit": (
            floor > found.long_cosine and _is_mostly(found.long_cosine, found.brief_cosine)
        ),
        "short texts differ most: EOS missing, padding side": (
            floor > found.brief_cosine and _is_mostly(found.brief_cosine, found.long_cosine)
        ),
        "only cut texts differ: side of truncation, or EOS lost with it": (
            found.long_cosine >= floor > found.cut_cosine
        ),
        "all texts differ a little: another activation (tanh for erf) or epsilon": (
            min(plain, instructed) >= floor and found.median_abs > (margins.median_abs or np.inf)
        ),
        "all texts differ: weights (adapter merged not at all or twice, a wrong scale, swapped "
        "halves), causal mask, missing EOS, padding side, or a coarse precision": (
            max(plain, instructed) < floor
        ),
    }
    return [cause for cause, is_seen in signs.items() if is_seen]
