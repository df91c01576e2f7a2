"""This file owns the export recipe: what a user may choose, read from TOML and checked at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.engine_options import EngineOptions, engine_options, engine_table
from nvembed_deploy.export.formats import (
    RANK_MULTIPLE,
    SCHEMES,
    Activations,
    Code,
    Formats,
    Kernels,
    Rounding,
)
from nvembed_deploy.export.recipe_rules import settle
from nvembed_deploy.spec import MIN_TOKENS, PoolerForm, Precision
from nvembed_deploy.tomlfile import read_toml

OPSETS = (20, 23)
PRECISIONS = (*(precision.value for precision in Precision), *SCHEMES)
"""What `precision` may be: a number format, or a scheme that quantises linears beside float16."""
_ENUMS: dict[str, type[Enum]] = {
    "precision": Precision,
    "pooler": PoolerForm,
    "activations": Activations,
    "rounding": Rounding,
}
RANK = 32
"""Principal directions by default: docs/numerics.md has the measurements."""


@dataclass(frozen=True)
class ExportRecipe:
    """Choices of one export. `checkpoint` and `out` are defaults for the command line's."""

    checkpoint: str | None = None
    out: str | None = None
    precision: Precision = Precision.FP16
    opset: int = 23
    pooler: PoolerForm = PoolerForm.FOLDED
    scheme: str | None = None
    """The name in `precision` where it quantises; `precision` is then that of everything else."""
    activations: Activations | None = None
    per_token: tuple[str, ...] | None = None
    """Names or patterns of linears whose inputs have a range per token, all others one range; None:
    what is measured."""
    rotate: bool | None = None
    rounding: Rounding = Rounding.COMPENSATED
    fp8_attention: bool = False
    """Round what attention reads, and its weights, too: with precision fp8 alone."""
    keep: tuple[str, ...] = ()
    keep_share: float = 0.0
    """At most this share of the linears' weights is kept too: where rounding harms most."""
    fp8_rank: int | None = None
    """So many principal directions of each input are rounded to two FP8 numbers: with precision fp8
    alone. None: `RANK` where rounding sees texts and inputs have ranges per token."""
    calibration: str | None = None
    calibration_texts: int = 256
    calibration_tokens: int = 128
    device: str = "cpu"
    """Where calibration computes, by torch's name; last digits differ between devices."""
    ranges: str | None = None
    """An artifact whose calibrated ranges are used again, without texts."""
    max_tokens: int | None = None
    """Tokens after which texts are cut, instead of the checkpoint's own."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Literal prefixes by name, beside the checkpoint's own."""
    cache: str | None = None
    """A folder for the blocks that are rounded: an export that was killed goes on from them."""
    seed: int = 0
    engine: EngineOptions | None = None
    """Compile the graph too."""

    @property
    def label(self) -> str:
        """What --precision was: fp16, int8, ..."""
        return self.scheme or self.precision.value

    @property
    def formats(self) -> Formats:
        """How linears are quantised; empty where none is."""
        if self.scheme is None:
            return Formats()
        scheme = SCHEMES[self.scheme]
        linear = scheme.linear
        if self.activations is not None:
            linear = replace(linear, activations=self.activations)
        linear = replace(linear, rank=self.rank)
        per_token = ("*",) if self.per_token is None else self.per_token
        return Formats(linear, self.keep, per_token, scheme.kept)

    @property
    def is_calibrated(self) -> bool:
        """Whether rounding is fitted on texts."""
        return self.scheme is not None and self.rounding is Rounding.COMPENSATED

    @property
    def rank(self) -> int:
        """How many directions of each input are rounded to two numbers."""
        if self.fp8_rank is not None:
            return self.fp8_rank
        is_fp8 = self.scheme is not None and SCHEMES[self.scheme].linear.code is Code.FP8
        by_row = self.activations in (None, Activations.ROW)
        return RANK if is_fp8 and self.is_calibrated and by_row else 0

    @property
    def measures_ranges(self) -> bool:
        """Whether calibration finds which linears need a range per token."""
        if self.scheme is None or not self.is_calibrated:
            return False
        is_open = self.activations is None and self.per_token is None
        return is_open and SCHEMES[self.scheme].measures

    @property
    def kernels(self) -> Kernels:
        """Whose operators the graph is written in."""
        return Kernels.STANDARD if self.scheme is None else SCHEMES[self.scheme].kernels

    @property
    def rotation(self) -> int | None:
        """The seed of the rotation; None without one."""
        return self.seed if self.rotates else None

    @property
    def rotates(self) -> bool:
        """Whether outlier channels are spread first."""
        if self.scheme is None:
            return False
        return SCHEMES[self.scheme].rotates if self.rotate is None else self.rotate

    def to_dict(self) -> dict[str, Any]:
        """Return what shaped the artifact, as plain JSON data (no paths)."""
        shaped: dict[str, Any] = {
            "precision": self.label,
            "opset": self.opset,
            "pooler": self.pooler.value,
        }
        if self.formats.linear is None:
            return shaped
        is_by_token = self.formats.linear.activations is Activations.ROW
        shaped |= {
            "activations": self.formats.linear.activations.value,
            "kernels": self.kernels.value,
            "rotate": self.rotates,
            "rounding": self.rounding.value,
            "per_token": list(self.formats.per_token) if is_by_token else [],
            "keep": list(self.keep),
            "keep_share": self.keep_share,
            "fp8_rank": self.rank,
            "fp8_attention": self.fp8_attention,
            "seed": self.seed,
        }
        if not self.is_calibrated and not self.keep_share:
            return shaped
        return shaped | {
            "calibration": Path(self.calibration).name if self.calibration else "built-in",
            "calibration_texts": self.calibration_texts,
            "calibration_tokens": self.calibration_tokens,
            "device": self.device,
        }


def load_recipe(path: Path | None, overrides: dict[str, Any] | None = None) -> ExportRecipe:
    """Read a TOML recipe, apply the overrides that are not None, and check all of it.

    Raises:
        RecipeError: the file cannot be read, or keys or values are wrong; all are listed.
    """
    values = read_toml(path, "recipe", see="export/") if path is not None else {}
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if "engine" in values and "engine" in given:
        given["engine"] = engine_table(values["engine"]) | engine_table(given["engine"])
    values |= given
    known = {field.name for field in fields(ExportRecipe)} - {"scheme"}
    unknown = sorted(set(values) - known)
    mistakes = [f"unknown key {key!r}" for key in unknown]
    clean: dict[str, Any] = {}
    for key in sorted(known & set(values)):
        read = engine_options if key == "engine" else partial(_value, key)
        value, mistake = read(values[key])
        clean[key] = value
        mistakes += [mistake] if mistake else []
    mistakes += settle(clean)
    if mistakes:
        where = f"recipe {path}" if path is not None else "the options"
        raise RecipeError(
            f"{where}: " + "; ".join(mistakes),
            f"correct them; the keys are {sorted(known)}" if unknown else "correct what is named",
        )
    return replace(ExportRecipe(), **clean)


def _value(key: str, value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - TOML data
    if key == "precision" and value in list(SCHEMES):  # a list from TOML cannot be hashed
        return value, None
    if key in _ENUMS:
        names = list(PRECISIONS) if key == "precision" else [m.value for m in _ENUMS[key]]
        if value not in names:
            return None, f"{key} is {value!r}, expected one of {names}"
        return _ENUMS[key](value), None
    if key == "opset" and (type(value) is not int or value not in OPSETS):
        return None, f"opset is {value!r}, expected one of {list(OPSETS)}"
    if key in _TABLES:
        return _TABLES[key](value)
    return value, _wrong_kind(key, value)


def _names(key: str, value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - TOML data
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    mistake = f"{key} is {value!r}, expected a list of names or patterns of linears"
    return (tuple(value), None) if is_list else (None, mistake)


def _prompts(value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - TOML data
    is_table = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return (value, None) if is_table else (None, f"prompts is {value!r}, expected a table of texts")


_TABLES: dict[str, Callable[[Any], tuple[Any, str | None]]] = {
    "keep": partial(_names, "keep"),
    "per_token": partial(_names, "per_token"),
    "prompts": _prompts,
}
_KINDS: dict[str, tuple[type, str]] = {
    "checkpoint": (str, "a path"),
    "out": (str, "a path"),
    "calibration": (str, "the path of a JSONL file"),
    "ranges": (str, "the folder of a calibrated artifact"),
    "cache": (str, "the path of a folder"),
    "device": (str, "a device of torch, as cuda or cuda:1"),
    "rotate": (bool, "true or false"),
    "fp8_attention": (bool, "true or false"),
    "keep_share": (float, "a share from 0 to below 1, as 0.1"),
    "fp8_rank": (int, f"a multiple of {RANK_MULTIPLE}, or 0"),
    "calibration_texts": (int, "a whole number of at least 1"),
    "calibration_tokens": (int, "a whole number of at least 1"),
    "max_tokens": (int, f"a whole number of at least {MIN_TOKENS}"),
    "seed": (int, "a whole number of at least 0"),
}
_LEAST = {"seed": 0, "fp8_rank": 0, "max_tokens": MIN_TOKENS}


def _wrong_kind(key: str, value: Any) -> str | None:  # noqa: ANN401 - TOML data
    kind, expected = _KINDS.get(key, (object, ""))
    if kind is float:
        is_wrong = type(value) not in (int, float) or not 0 <= value < 1
    else:
        is_wrong = kind is not object and type(value) is not kind
    is_wrong = is_wrong or (kind is int and value < _LEAST.get(key, 1))
    if is_wrong or (key == "fp8_rank" and value % RANK_MULTIPLE):
        return f"{key} is {value!r}, expected {expected}"
    return None
