"""This file owns the data of a run: its tables, what is said of them, and that they stay."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.recipe import TrainRecipe
from nvembed_deploy.train.run_folder import DATA
from nvembed_deploy.train.sources import Source, SourceReport, open_source
from nvembed_deploy.train.start import open_room


def open_sources(recipe: TrainRecipe) -> list[Source]:
    """Read all the recipe's data into tables under `out/data`.

    Raises:
        CheckpointError, ArtifactError: the model's tokenizer cannot be read.
        InputError: data cannot be read, or no example has anything to be compared with.
    """
    skip_faults = recipe.text.on_bad == "skip"
    room = open_room(recipe)
    cache = recipe.run.out / DATA
    cache.mkdir(parents=True, exist_ok=True)
    sources = [open_source(s, cache, skip_faults=skip_faults, room=room) for s in recipe.data]
    if _is_alone(recipe) and all(s.report.num_alone == s.report.kept for s in sources):
        raise InputError(
            "no example has a negative, and queries are compared with nothing else "
            f"(loss.in_batch_negatives is {str(recipe.loss.in_batch_negatives).lower()}, "
            f"batch.queries {recipe.batch.queries}): each loss would be 0",
            "find negatives (nvembed-deploy mine), or set loss.in_batch_negatives = true with "
            "batch.queries above 1",
        )
    return sources


def _is_alone(recipe: TrainRecipe) -> bool:
    """Return whether a query is compared with its own passages only."""
    return not recipe.loss.in_batch_negatives or recipe.batch.queries == 1


def tell_alone(recipe: TrainRecipe, sources: Sequence[Source]) -> None:
    """Print how many examples of each source teach nothing."""
    for report in (source.report for source in sources):
        for line in _alone(recipe, report):
            print(f"warning: {report.path}: {line}", file=sys.stderr)  # noqa: T201 - the terminal


def _alone(recipe: TrainRecipe, report: SourceReport) -> list[str]:
    if not _is_alone(recipe) or not report.num_alone:
        return []
    return [
        f"{report.num_alone:,} of {counted(report.kept, 'example')} have no negative and are "
        "compared with nothing: their loss is 0"
    ]


def describe(recipe: TrainRecipe, sources: Sequence[Source]) -> str:
    """Say what a run would do: the data, how often each source is passed through, the steps."""
    drawn = recipe.optimizer.steps * recipe.batch.queries
    total = sum(section.weight for section in recipe.data)
    lines = []
    for section, source in zip(recipe.data, sources, strict=True):
        report, share = source.report, section.weight / total
        tasks = ", ".join(f"{name} {count:,}" for name, count in report.task_types.items())
        lines.append(
            f"{report.path}: {counted(report.kept, 'example')} ({tasks}), {share:.0%} of each "
            f"batch, passed through {drawn * share / report.kept:.2f} times"
        )
        lines += [f"  left out {count:,}: {why}" for why, count in report.faults.items()]
        lines += [f"  {line}" for line in _alone(recipe, report)]
    per_query = 2 + recipe.loss.hard_negatives
    lines.append(
        f"{counted(recipe.optimizer.steps, 'step')} of {recipe.batch.queries} queries, up to "
        f"{recipe.batch.queries * per_query:,} texts each; writes {recipe.run.out}"
    )
    return "\n".join(lines)


def stamps_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return what tells these data from others, as plain data: a saved step holds it."""
    reports = [source.report for source in sources]
    return [{"path": r.path, "kept": r.kept, "digest": r.digest} for r in reports]


def check_unchanged(saved: list[dict[str, Any]], sources: Sequence[Source], step: int) -> None:
    """Refuse to go on with other data than a step was trained on.

    Args:
        saved: the step's `stamps_of`.
        sources: what is to be trained on.
        step: its number.

    Raises:
        InputError: examples are others, or in another order; all such sources are listed.
    """
    changed = [
        f"{new['path']}, {_difference(old['kept'], new['kept'])}"
        for old, new in zip(saved, stamps_of(sources), strict=True)
        if old["digest"] != new["digest"]
    ]
    if changed:
        raise InputError(
            f"the data are not those of step {step}: {'; '.join(changed)}",
            "put them back as they were, or begin again: --overwrite",
        )


def _difference(then: int, now: int) -> str:
    if then == now:
        return f"{counted(then, 'example')} then and now, but not the same"
    return f"{counted(then, 'example')} then and {now:,} now"
