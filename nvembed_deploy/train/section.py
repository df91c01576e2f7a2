"""This file owns how a file's sections are checked: no unknown key, and all mistakes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvembed_deploy.errors import RecipeError

Whole = Annotated[int, Field(ge=0, strict=True)]
"""Not true or false, which were 1 and 0: `hard_negatives = true` is a mistake."""
Count = Annotated[Whole, Field(ge=1)]


class Section(BaseModel):
    """A table of a TOML file. Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_AnySection = TypeVar("_AnySection", bound=Section)


def validated(kind: type[_AnySection], values: Mapping[str, Any], where: str) -> _AnySection:
    """Return a file's values as sections.

    Args:
        kind: the outermost section.
        values: what the file says.
        where: its kind and path, for the message: "recipe train/smoke.toml".

    Raises:
        RecipeError: keys or values are wrong; all are listed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        mistakes = [
            _mistake(e, kind, whole=where.split(" ", maxsplit=1)[0])
            for e in errors
            if not any(_is_within(other["loc"], e["loc"]) for other in errors)
        ]
        raise RecipeError(
            f"{where}:" + "".join(f"\n  {mistake}" for mistake in mistakes), "correct them"
        ) from None


def _is_within(inner: tuple[object, ...], outer: tuple[object, ...]) -> bool:
    """Return whether a mistake is inside what another is about: a list lacks what was refused."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _mistake(error: Mapping[str, Any], kind: type[Section], whole: str) -> str:
    where = ".".join(str(part) for part in error["loc"]) or whole
    if error["type"] == "extra_forbidden":
        *path, key = error["loc"]
        return f"unknown key {where}, expected one of {', '.join(_keys(kind, path, key))}"
    if error["type"] == "missing":
        return f"{where} is missing"
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {problem}"
    return f"{where} is {error['input']!r}: {problem}"


def _keys(kind: type[Section], path: Sequence[str | int], wrong: str) -> list[str]:
    """List the keys of the section at `path` within `kind`, the one most like `wrong` first."""
    for part in path:
        if isinstance(part, str):
            field: Any = kind.model_fields[part].annotation
            kind = field if isinstance(field, type) else get_args(field)[0]  # one, or a list of it
    keys = list(kind.model_fields)
    return list(dict.fromkeys(get_close_matches(wrong, keys, n=1) + keys))
