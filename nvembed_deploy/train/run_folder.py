"""This file owns a run's folder: whose it is, and what may be removed of it.

`out/` holds recipe.json, data/ (tables), log.jsonl, curves.png, steps/ and at the end checkpoint/.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvembed_deploy.checkpoint import DESCRIPTION, foreign_files
from nvembed_deploy.config import read_json
from nvembed_deploy.errors import CheckpointError, RecipeError
from nvembed_deploy.filelock import lock
from nvembed_deploy.staging import replace_text
from nvembed_deploy.train.journal import CURVES, LOG
from nvembed_deploy.train.recipe import TrainRecipe
from nvembed_deploy.train.sources import Source, is_table

RECIPE = "recipe.json"
DATA = "data"
_LOCK = "run.lock"
_CHECKPOINT, _NAMED = "checkpoint", 5
_TRACKED = ("tensorboard", "wandb")
_WRITTEN = (_CHECKPOINT, CURVES, *_TRACKED, LOG, "steps", RECIPE)
"""What a run writes beside its tables, in the order it is removed: what is left when that is
killed is still a run, which begins again only if asked to."""
_WATCHING = {"run.log_every", "run.save_every", "run.keep", "run.tracker", "run.out"}
_MEMORY = {"run.shard", "run.gradient_checkpointing", "batch.chunk_tokens", "batch.live_tokens"}
_FREE = _WATCHING | _MEMORY | {"run.compile", "run.on_nan"}
"""What may change when a run goes on: a machine with less memory must be able to end it, and one
loss that is not finite must not cost the steps before it."""


def check_paths(recipe: TrainRecipe) -> None:
    """Refuse a recipe that names what is not there, or reads what the run writes.

    Raises:
        RecipeError: paths do not exist, or are the run's own; all are listed.
    """
    named = {"model.base": recipe.model.base, "model.checkpoint": recipe.model.checkpoint}
    named |= {f"data.{number}.path": section.path for number, section in enumerate(recipe.data)}
    paths = {key: path for key, path in named.items() if path}
    missing = [f"{key} {path}" for key, path in paths.items() if not path.exists()]
    if missing:
        raise RecipeError(
            f"{', '.join(missing)}: no such file or folder",
            "correct the recipe (paths start at the current folder), or fetch what it names",
        )
    out = recipe.run.out
    own = [
        f"{key} {path}"
        for key, path in paths.items()
        if _is_written(path.resolve(), out.resolve(), is_read_whole=key.startswith(DATA))
    ]
    if own:
        raise RecipeError(
            f"{', '.join(own)}: the run itself writes there, run.out is {out}",
            "choose another run.out",
        )


def _is_written(path: Path, out: Path, *, is_read_whole: bool) -> bool:
    """Return whether a path is a run's folder or within what it writes, or a folder around it."""
    if is_read_whole and out.is_relative_to(path):
        return True
    if path.is_relative_to(out / DATA) and any(map(is_table, [path, *path.parents])):
        return True
    return path == out or any(path.is_relative_to(out / name) for name in _WRITTEN)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Let no other run write `out` meanwhile.

    Raises:
        RecipeError: another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("ab") as file:
        try:
            lock(file.fileno())
        except BlockingIOError:
            raise RecipeError(
                f"another run is writing {out}", "wait for it, or change run.out"
            ) from None
        yield


def check_claim(recipe: TrainRecipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse an `out` that holds another run. One that ended before its first step is none.

    Raises:
        RecipeError: it holds a run, and is neither to be resumed nor removed; or it was begun with
            another recipe, or one that is missing or cannot be read; or its checkpoint holds files
            of others, which would be lost.
    """
    out = recipe.run.out
    _check_checkpoint(out / _CHECKPOINT)
    path = out / RECIPE
    if not _holds_steps(out) or (overwrite and path.exists()):
        return
    if not path.exists():
        raise RecipeError(
            f"{out} holds steps or a log but no {RECIPE}: whose they are is not known",
            "move that elsewhere, or change run.out",
        )
    if not resume:
        raise RecipeError(
            f"{out} holds a run already", "add --resume, --overwrite, or change run.out"
        )
    try:
        described = read_json(path)
    except CheckpointError as error:
        raise RecipeError(error.problem, "begin again: --overwrite, or change run.out") from error
    differing = _differing(recipe.model_dump(mode="json"), described)
    if differing:
        raise RecipeError(
            f"{out} was begun with another recipe: {', '.join(differing)} differ",
            "resume with the same recipe, or choose another run.out",
        )


def _check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint that somebody put files into: the next one takes its place."""
    names = foreign_files(folder) if (folder / DESCRIPTION).exists() else []
    if names:
        raise RecipeError(
            f"{folder} holds {', '.join(names[:_NAMED])}, which training did not write and would "
            "remove",
            "move that elsewhere, or change run.out",
        )


def written(out: Path) -> list[Path]:
    """List what the run that is in `out` has written beside its tables, in the order of removal.

    Of trackers each file and folder: the next run's tracker writes beside them. Their links are
    not listed: `wandb/latest-run` is the next run's by the time that these are removed.
    """
    if not (out / RECIPE).exists():
        return []
    tracked = [n for n in _TRACKED if not (out / n).is_symlink()]  # behind a link is others' too
    inside = [path for n in tracked for path in (out / n).glob("*") if not path.is_symlink()]
    return inside + [out / n for n in _WRITTEN if n not in _TRACKED]


def claim(recipe: TrainRecipe, sources: Sequence[Source], earlier: Sequence[Path] = ()) -> None:
    """Make `out` this recipe's, now that all it needs is open.

    Args:
        recipe: of the run that begins.
        sources: its data, whose tables stay.
        earlier: what is removed: all that was `written` by the run that is overwritten.
    """
    out = recipe.run.out
    if earlier:
        used = {source.folder.name for source in sources}
        for table in [t for t in (out / DATA).iterdir() if is_table(t) and t.name not in used]:
            _remove(table)
        for place in earlier:
            _remove(place)
    replace_text(out / RECIPE, json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _holds_steps(out: Path) -> bool:
    log = out / LOG
    return (out / "steps").exists() or (log.exists() and log.stat().st_size > 0)


def _differing(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """List the keys that would change the result by more than rounding."""
    changed = {
        f"{section}.{key}"
        for section, values in new.items()
        if isinstance(values, dict)
        for key in values
        if values[key] != (old.get(section) or {}).get(key)
    }
    return sorted(changed - _FREE) + (["data"] if new["data"] != old.get("data") else [])
