"""This file owns reading the TOML files that users write: recipes and plans."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError


def read_toml(path: Path, kind: str, *, see: str) -> dict[str, Any]:
    """Return what a TOML file says.

    Args:
        path: the file.
        kind: what users call such a file: recipe, plan.
        see: where examples of them are.

    Raises:
        RecipeError: it does not exist, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(
            f"{kind} {path} does not exist", f"give the path of a .toml file; see {see}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{kind} {path} is not TOML: {error}", "correct that line") from error


def read_value(text: str) -> Any:  # noqa: ANN401 - TOML data
    """Return one value as TOML reads it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
