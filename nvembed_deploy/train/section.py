"""This file owns how a file's sections are checked: no unknown key, and all mistakes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nvembed_deploy.errors import RecipeError


class Section(BaseModel):
    """A table of a TOML file. Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_AnySection = TypeVar("_AnySection", bound=Section)


def validated(
    kind: type[_AnySection], values: Mapping[str, Any], where: str, *, see: str
) -> _AnySection:
    """Return a file's values as sections.

    Args:
        kind: the outermost section.
        values: what the file says.
        where: its kind and path, for the message: "recipe train/smoke.toml".
        see: the page that lists the keys.

    Raises:
        RecipeError: keys or values are wrong; all are listed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        mistakes = [
            _mistake(e, whole=where.split(" ", maxsplit=1)[0])
            for e in errors
            if not any(_is_within(other["loc"], e["loc"]) for other in errors)
        ]
        raise RecipeError(
            f"{where}:" + "".join(f"\n  {mistake}" for mistake in mistakes),
            f"correct them; {see} lists the keys",
        ) from None


def _is_within(inner: tuple[object, ...], outer: tuple[object, ...]) -> bool:
    """Return whether a mistake is inside what another is about: a list lacks what was refused."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _mistake(error: Mapping[str, Any], whole: str) -> str:
    where = ".".join(str(part) for part in error["loc"]) or whole
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}"
    if error["type"] == "missing":
        return f"{where} is missing"
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {problem}"
    return f"{where} is {error['input']!r}: {problem}"
