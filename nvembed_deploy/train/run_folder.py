"""This file owns a run's folder: whose it is, and its tables of data.

`out/` holds recipe.json, data/ (tables), log.jsonl, curves.png, steps/ and at the end checkpoint/.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.journal import LOG
from nvembed_deploy.train.recipe import TrainRecipe
from nvembed_deploy.train.sources import Source, open_source

RECIPE = "recipe.json"
_WATCHING = {"run.log_every", "run.save_every", "run.keep", "run.tracker", "run.out"}
_MEMORY = {"run.shard", "run.gradient_checkpointing", "batch.chunk_tokens", "batch.live_tokens"}
_FREE = _WATCHING | _MEMORY | {"run.compile"}
"""What may change when a run goes on: a machine with less memory must be able to end it."""


def check_paths(recipe: TrainRecipe) -> None:
    """Refuse a recipe that names what is not there.

    Raises:
        RecipeError: paths do not exist; all are listed.
    """
    paths = {"model.base": recipe.model.base, "model.checkpoint": recipe.model.checkpoint}
    paths |= {f"data.{number}.path": section.path for number, section in enumerate(recipe.data)}
    missing = [f"{key} {path}" for key, path in paths.items() if path and not path.exists()]
    if missing:
        raise RecipeError(
            f"{', '.join(missing)}: no such file or folder",
            "correct the recipe (paths start at the current folder), or fetch what it names",
        )


def open_sources(recipe: TrainRecipe) -> list[Source]:
    """Read all the recipe's data into tables under `out/data`."""
    skip_faults = recipe.text.on_bad == "skip"
    cache = recipe.run.out / "data"
    cache.mkdir(parents=True, exist_ok=True)
    return [open_source(section, cache, skip_faults=skip_faults) for section in recipe.data]


def describe(recipe: TrainRecipe, sources: list[Source]) -> str:
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
    per_query = 2 + recipe.loss.hard_negatives
    lines.append(
        f"{counted(recipe.optimizer.steps, 'step')} of {recipe.batch.queries} queries, up to "
        f"{recipe.batch.queries * per_query:,} texts each; writes {recipe.run.out}"
    )
    return "\n".join(lines)


def claim(recipe: TrainRecipe, *, resume: bool, overwrite: bool) -> None:
    """Make `out` this recipe's. A run that ended before its first step leaves no claim.

    Raises:
        RecipeError: it holds a run, and is neither to be resumed nor removed; or it was begun with
            another recipe.
    """
    out, described = recipe.run.out, recipe.model_dump(mode="json")
    path = out / RECIPE
    if overwrite and path.exists():
        shutil.rmtree(out)
    if path.exists() and _holds_steps(out):
        if not resume:
            raise RecipeError(
                f"{out} holds a run already", "add --resume, --overwrite, or change run.out"
            )
        differing = _differing(described, json.loads(path.read_text(encoding="utf-8")))
        if differing:
            raise RecipeError(
                f"{out} was begun with another recipe: {', '.join(differing)} differ",
                "resume with the same recipe, or choose another run.out",
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _holds_steps(out: Path) -> bool:
    log = out / LOG
    return (out / "steps").exists() or (log.exists() and log.stat().st_size > 0)


def _differing(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """List the keys that would change the result by more than rounding."""
    keys = {f"{s}.{k}" for s in new if isinstance(new[s], dict) for k in new[s]} - _FREE
    changed = [k for k in sorted(keys) if _at(new, k) != _at(old, k)]
    return changed + (["data"] if new["data"] != old.get("data") else [])


def _at(values: dict[str, Any], key: str) -> object:
    section, _, name = key.partition(".")
    return (values.get(section) or {}).get(name)
