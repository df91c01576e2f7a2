"""This file owns the export recipe: what a user may choose, read from TOML and checked at once."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.spec import PoolerForm, Precision

OPSETS = (20, 23)
_ENUMS: dict[str, type[Enum]] = {"precision": Precision, "pooler": PoolerForm}


@dataclass(frozen=True)
class ExportRecipe:
    """Choices of one export. `checkpoint` and `out` are defaults for the command line's."""

    checkpoint: str | None = None
    out: str | None = None
    precision: Precision = Precision.FP16
    opset: int = 23
    pooler: PoolerForm = PoolerForm.FOLDED

    def to_dict(self) -> dict[str, Any]:
        """Return what shaped the artifact, as plain JSON data (no paths)."""
        return {
            "precision": self.precision.value,
            "opset": self.opset,
            "pooler": self.pooler.value,
        }


def load_recipe(path: Path | None, overrides: dict[str, Any] | None = None) -> ExportRecipe:
    """Read a TOML recipe, apply the overrides that are not None, and check all of it.

    Raises:
        RecipeError: the file cannot be read, or keys or values are wrong; all are listed.
    """
    values = _read(path) if path is not None else {}
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    known = {field.name for field in fields(ExportRecipe)}
    mistakes = [f"unknown key {key!r}" for key in sorted(set(values) - known)]
    clean: dict[str, Any] = {}
    for key in sorted(known & set(values)):
        value, mistake = _value(key, values[key])
        clean[key] = value
        mistakes += [mistake] if mistake else []
    if mistakes:
        where = f"recipe {path}" if path is not None else "the options"
        raise RecipeError(
            f"{where}: " + "; ".join(mistakes), f"correct them; the keys are {sorted(known)}"
        )
    return replace(ExportRecipe(), **clean)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"recipe {path} does not exist", "give the path of a .toml file; see export/"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}", "correct that line") from error


def _value(key: str, value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - TOML data
    if key in _ENUMS:
        names = [member.value for member in _ENUMS[key]]
        if value not in names:
            return None, f"{key} is {value!r}, expected one of {names}"
        return _ENUMS[key](value), None
    if key == "opset" and (type(value) is not int or value not in OPSETS):
        return None, f"opset is {value!r}, expected one of {list(OPSETS)}"
    if key in ("checkpoint", "out") and not isinstance(value, str):
        return None, f"{key} is {value!r}, expected a path"
    return value, None
