"""This file owns how a folder appears at once: written under another name, synced, then renamed.

A run killed at any moment leaves the old folder or the new one, whole, and perhaps hidden siblings
that the next run removes. Where the system cannot exchange two folders at once (it is not Linux, or
the disk has no such call), the old one may be such a sibling, which the next run puts back. It does
not know what the folder holds.
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed_deploy import filelock
from nvembed_deploy.errors import ArtifactError, NVEmbedError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Source: renameat2(2) of Linux, linux/fcntl.h and linux/fs.h."""
_LITTER = (".cache/huggingface/", ".DS_Store")
"""What the hub's client and file managers leave in folders: nobody's work."""
_NAMED = 5
"""Files that an error names."""

Foreign = Callable[[Path], list[str]]
"""Names the files of a folder that are not ours; raises where the marker itself is not."""


@contextmanager
def staged_folder(
    out_dir: Path, *, marker: str, overwrite: bool = False, foreign: Foreign | None = None
) -> Iterator[Path]:
    """Yield a temporary sibling of `out_dir` that becomes `out_dir` when the block succeeds.

    Args:
        out_dir: the folder to make.
        marker: a file that every such folder holds. Only a folder that has it, or is empty, is
            ever overwritten: a mistyped path must not cost a home folder.
        overwrite: replace an existing `out_dir`, which stays whole until the new one is.
        foreign: which of its files are not ours, and would be lost: where there are any, it is not
            overwritten.

    Raises:
        ArtifactError: `out_dir` exists and may not be replaced, or cannot be written.
    """
    out_dir = Path(out_dir).resolve()
    _check_parent(out_dir)
    _repair(out_dir)
    _check_target(out_dir, marker, overwrite)
    if foreign is not None:
        _check_foreign(out_dir, marker, foreign)
    # No other run has this name, so it may be removed whenever an interrupt comes.
    stage = _sibling(out_dir, f"partial-{secrets.token_hex(8)}")
    lock = None
    try:
        lock = _make(stage)
        yield stage
        _sync_tree(stage)
        _swap(stage, out_dir, overwrite)
    finally:
        _discard(stage)
        if lock is not None:
            os.close(lock)


def refuse_inside(out_dir: Path, inputs: Iterable[tuple[str, Path | str | None]]) -> None:
    """Refuse a folder that holds what is read to make it: it would go with what it replaces.

    Args:
        out_dir: the folder to make.
        inputs: what is read, and what it is called; None is left out.

    Raises:
        ArtifactError: one of them is the folder, or in it.
    """
    folder = Path(out_dir).resolve()
    for role, path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(folder):
            raise ArtifactError(
                f"{out_dir} cannot be written: the {role} {path} lies there, and would be removed",
                f"choose another folder, or move the {role} out of this one",
            )


def names_in(folder: Path) -> list[str]:
    """Return the files and links in a folder, at any depth, by relative name, without litter."""
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if not name.startswith(_LITTER)]


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def _check_foreign(out_dir: Path, marker: str, foreign: Foreign) -> None:
    if not (out_dir / marker).exists():
        return
    try:
        names = foreign(out_dir)
    except NVEmbedError as error:
        raise ArtifactError(
            f"{out_dir} cannot be overwritten: something else made its {marker}: {error.problem}",
            "choose another folder, or remove this one yourself",
        ) from error
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ArtifactError(
            f"{out_dir} cannot be overwritten: it holds {', '.join(names[:_NAMED])}{more}, which "
            f"something else made and {marker} does not name",
            "move that elsewhere, to put it back afterwards; or choose another folder",
        )


def _left_behind(out_dir: Path, what: str) -> list[Path]:
    """Return the siblings that earlier runs for `out_dir` left, none with a name of another."""
    head = _sibling(out_dir, f"{what}-").name
    found = sorted(out_dir.parent.glob(glob.escape(head) + "*"))
    return [path for path in found if re.fullmatch("[0-9a-f]+", path.name.removeprefix(head))]


def _repair(out_dir: Path) -> None:
    """Remove what dead runs left half written, and put back what they moved aside."""
    for partial in _left_behind(out_dir, "partial"):
        if _is_abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)
    for old in _left_behind(out_dir, "old"):
        if out_dir.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out_dir)


def _make(stage: Path) -> int | None:
    try:
        stage.mkdir()
        return _lock(stage)
    except OSError as error:
        raise ArtifactError(
            f"cannot create {stage}: {error.strerror}",
            "free space and permissions, and let no other run write the same folder",
        ) from error


def _discard(folder: Path) -> None:
    """Remove a folder, even if an interrupt comes meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
        if filelock.lock(handle):
            return handle
    except BlockingIOError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is_abandoned(partial: Path) -> bool:
    try:
        handle = _lock(partial)
    except BlockingIOError:
        raise ArtifactError(
            f"another run is writing {partial}",
            "let no other run write the same folder: wait for it, or choose another folder",
        ) from None
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
    old = _sibling(out_dir, f"old-{secrets.token_hex(8)}")
    try:
        if not overwrite or not out_dir.exists():
            stage.rename(out_dir)
        elif not _exchange(stage, out_dir):
            out_dir.rename(old)
            stage.rename(out_dir)
        sync(out_dir.parent)
    except OSError as error:
        raise ArtifactError(
            f"cannot rename {stage.name} to {out_dir}: {error.strerror}",
            "let no other run write the same folder",
        ) from error
    finally:
        if old.exists() and not out_dir.exists():
            old.rename(out_dir)
        _discard(old)


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name at one moment, if the system and the disk can."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc has it since 2.28, musl 1.2.6
    names = os.fsencode(one), os.fsencode(other)
    if call is None:
        return False
    return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
