"""This file owns how a folder appears at once: written under another name, synced, then renamed.

A run killed at any moment leaves either the old folder, the new one, or hidden siblings that the
next run removes or puts back. It does not know what the folder holds.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed_deploy.errors import ArtifactError

if sys.platform != "win32":
    import fcntl


@contextmanager
def staged_folder(out_dir: Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `out_dir` that becomes `out_dir` when the block succeeds.

    Args:
        out_dir: the folder to make.
        marker: a file that every such folder holds. Only a folder that has it, or is empty, is
            ever overwritten: a mistyped path must not cost a home folder.
        overwrite: replace an existing `out_dir`, which stays whole until the new one is.

    Raises:
        ArtifactError: `out_dir` exists and may not be replaced, or cannot be written.
    """
    out_dir = Path(out_dir).resolve()
    _check_parent(out_dir)
    _repair(out_dir)
    _check_target(out_dir, marker, overwrite)
    stage = _sibling(out_dir, f"partial-{os.getpid()}")
    try:
        stage.mkdir()
    except OSError as error:
        raise ArtifactError(
            f"cannot create {stage}: {error.strerror}",
            "free space and permissions, and let no other run write the same folder",
        ) from error
    lock = _lock(stage)
    try:
        yield stage
        _sync_tree(stage)
        _swap(stage, out_dir, overwrite)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sibling(out_dir: Path, suffix: str) -> Path:
    return out_dir.with_name(f".{out_dir.name}.{suffix}")


def _check_parent(out_dir: Path) -> None:
    parent = out_dir.parent
    if not parent.is_dir():
        raise ArtifactError(
            f"cannot write {out_dir}: folder {parent} does not exist",
            f"create it first: mkdir -p {parent}",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"cannot write {out_dir}: folder {parent} is not writable",
            "choose another folder or change its permissions",
        )


def _check_target(out_dir: Path, marker: str, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not overwrite:
        raise ArtifactError(
            f"{out_dir} exists already", "choose another folder, or ask to overwrite it"
        )
    if not out_dir.is_dir() or (any(out_dir.iterdir()) and not (out_dir / marker).exists()):
        raise ArtifactError(
            f"{out_dir} cannot be overwritten: it has no {marker}, so something else made it",
            "choose another folder, or remove this one yourself",
        )


def _repair(out_dir: Path) -> None:
    """Put back what a killed run moved aside, and remove what dead runs left half written."""
    for old in sorted(out_dir.parent.glob(f".{out_dir.name}.old-*")):
        if out_dir.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out_dir)
    for partial in out_dir.parent.glob(f".{out_dir.name}.partial-*"):
        if _is_abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """Hold `folder` until the returned handle is closed or this process dies.

    A lock, not the process number in the name: containers that share a disk reuse numbers.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a network disk without locks: work on, unlocked
        os.close(handle)
        return None
    return handle


def _is_abandoned(partial: Path) -> bool:
    try:
        handle = _lock(partial)
    except OSError:
        return False
    if handle is None:  # no locks here: removing a folder in use would be worse than keeping one
        return False
    os.close(handle)
    return True


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _swap(stage: Path, out_dir: Path, overwrite: bool) -> None:
    """Rename `stage` to `out_dir`; what was there is whole, aside, until that is done."""
    old = _sibling(out_dir, f"old-{os.getpid()}")
    if overwrite and out_dir.exists():
        out_dir.rename(old)
    try:
        stage.rename(out_dir)
    except OSError as error:
        if old.exists() and not out_dir.exists():
            old.rename(out_dir)
        raise ArtifactError(
            f"cannot rename {stage.name} to {out_dir}: {error.strerror}",
            "let no other run write the same folder",
        ) from error
    sync(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)
