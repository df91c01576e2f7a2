"""This file owns the refusal to train, or to make data for it, without a package it needs."""

from __future__ import annotations

from importlib.util import find_spec

from nvembed_deploy.errors import MissingPackageError


def need(task: str, *packages: str) -> None:
    """Refuse a task some of whose packages are not installed; none of them is imported.

    Raises:
        MissingPackageError: all that are missing are named.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{task} needs {', '.join(missing)}", "pip install 'nvembed-deploy[train]'"
        )
