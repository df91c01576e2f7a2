"""This file owns the check of a caller's whole numbers."""

from __future__ import annotations

from typing import Any, SupportsIndex

from nvembed_deploy.errors import InputError


def whole(
    name: str,
    value: Any,  # noqa: ANN401 - a caller's
    fix: str,
    *,
    least: int = 1,
    most: int | None = None,
) -> int:
    """Return an argument that is a whole number in its bounds: Python's or numpy's, not a bool.

    Raises:
        InputError: it is none, or lies outside.
    """
    is_whole = isinstance(value, SupportsIndex) and not isinstance(value, bool)
    number = value.__index__() if is_whole else least - 1
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} is {value!r}, expected a whole number {bounds}", fix)
    return number
