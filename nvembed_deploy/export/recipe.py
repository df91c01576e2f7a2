"""This file owns the export recipe: what a user may choose, read from TOML and checked at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.engine_options import EngineOptions, engine_options
from nvembed_deploy.export.formats import SCHEMES, Activations, Code, Formats, Kernels, Rounding
from nvembed_deploy.spec import PoolerForm, Precision
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
_INT4_OPSET, _CPU_OPSET, _FP8_ATTENTION_OPSET = 21, 23, 23


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
    calibration: str | None = None
    calibration_texts: int = 256
    calibration_tokens: int = 128
    ranges: str | None = None
    """An artifact whose calibrated ranges are used again, without texts."""
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
        linear = SCHEMES[self.scheme].linear
        if self.activations is not None:
            linear = replace(linear, activations=self.activations)
        return Formats(linear, self.keep, ("*",) if self.per_token is None else self.per_token)

    @property
    def measures_ranges(self) -> bool:
        """Whether calibration finds which linears need a range per token."""
        if self.scheme is None or self.rounding is Rounding.NEAREST:
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
            "fp8_attention": self.fp8_attention,
            "seed": self.seed,
        }
        if self.rounding is Rounding.NEAREST:
            return shaped
        return shaped | {
            "calibration": Path(self.calibration).name if self.calibration else "built-in",
            "calibration_texts": self.calibration_texts,
            "calibration_tokens": self.calibration_tokens,
        }


def load_recipe(path: Path | None, overrides: dict[str, Any] | None = None) -> ExportRecipe:
    """Read a TOML recipe, apply the overrides that are not None, and check all of it.

    Raises:
        RecipeError: the file cannot be read, or keys or values are wrong; all are listed.
    """
    values = read_toml(path, "recipe", see="export/") if path is not None else {}
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if isinstance(values.get("engine"), dict) and "engine" in given:
        given["engine"] = values["engine"] | given["engine"]
    values |= given
    known = {field.name for field in fields(ExportRecipe)} - {"scheme"}
    mistakes = [f"unknown key {key!r}" for key in sorted(set(values) - known)]
    clean: dict[str, Any] = {}
    for key in sorted(known & set(values)):
        read = engine_options if key == "engine" else partial(_value, key)
        value, mistake = read(values[key])
        clean[key] = value
        mistakes += [mistake] if mistake else []
    mistakes += _contradictions(clean)
    if mistakes:
        where = f"recipe {path}" if path is not None else "the options"
        raise RecipeError(
            f"{where}: " + "; ".join(mistakes), f"correct them; the keys are {sorted(known)}"
        )
    return replace(ExportRecipe(), **clean)


def _value(key: str, value: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - TOML data
    if key == "precision" and value in SCHEMES:
        return value, None
    if key in _ENUMS:
        names = list(PRECISIONS) if key == "precision" else [m.value for m in _ENUMS[key]]
        if value not in names:
            return None, f"{key} is {value!r}, expected one of {names}"
        return _ENUMS[key](value), None
    if key == "opset" and (type(value) is not int or value not in OPSETS):
        return None, f"opset is {value!r}, expected one of {list(OPSETS)}"
    if key in ("keep", "per_token"):
        is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
        mistake = f"{key} is {value!r}, expected a list of names or patterns of linears"
        return (tuple(value), None) if is_list else (None, mistake)
    return value, _wrong_kind(key, value)


_KINDS: dict[str, tuple[type, str]] = {
    "checkpoint": (str, "a path"),
    "out": (str, "a path"),
    "calibration": (str, "the path of a JSONL file"),
    "ranges": (str, "the folder of a calibrated artifact"),
    "rotate": (bool, "true or false"),
    "fp8_attention": (bool, "true or false"),
    "keep_share": (float, "a share from 0 to below 1, as 0.1"),
    "calibration_texts": (int, "a whole number of at least 1"),
    "calibration_tokens": (int, "a whole number of at least 1"),
    "seed": (int, "a whole number of at least 0"),
}


def _wrong_kind(key: str, value: Any) -> str | None:  # noqa: ANN401 - TOML data
    kind, expected = _KINDS.get(key, (object, ""))
    if kind is float:
        is_wrong = type(value) not in (int, float) or not 0 <= value < 1
    else:
        is_wrong = kind is not object and type(value) is not kind
    if is_wrong or (kind is int and value < (0 if key == "seed" else 1)):
        return f"{key} is {value!r}, expected {expected}"
    return None


def _contradictions(clean: dict[str, Any]) -> list[str]:
    """Move a scheme out of `precision`, and say which values do not go together."""
    scheme = clean.get("precision")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        only = sorted(_QUANTIZED_KEYS & set(clean))
        return [f"{', '.join(only)} without a precision of {list(SCHEMES)}"] if only else []
    clean |= {"precision": SCHEMES[scheme].precision, "scheme": scheme}
    mistakes = []
    if clean.get("pooler") is PoolerForm.FAITHFUL:
        mistakes.append(f"precision {scheme} with the faithful pooler, which is for audits")
    if SCHEMES[scheme].kernels is Kernels.CPU:
        mistakes += _contradictions_of_cpu(scheme, clean)
    if SCHEMES[scheme].linear.code is Code.INT4 and clean.get("opset", _INT4_OPSET) < _INT4_OPSET:
        mistakes.append(f"precision {scheme} with opset {clean['opset']}: INT4 needs opset 23")
    if clean.get("fp8_attention"):
        mistakes += _contradictions_of_attention(scheme, clean)
    if clean.get("ranges"):
        mistakes += _contradictions_of_ranges(clean)
    return mistakes + _contradictions_of_inputs(scheme, clean)


def _contradictions_of_inputs(scheme: str, clean: dict[str, Any]) -> list[str]:
    """One range for all tokens is found on texts, or is in `ranges`."""
    mistakes, is_named = [], "per_token" in clean
    if is_named and SCHEMES[scheme].linear.activations is not Activations.ROW:
        mistakes.append(f"per_token with precision {scheme}, which leaves inputs as they are")
    if is_named and "activations" in clean:
        mistakes.append("per_token with activations, which says the same of all linears")
    if clean.get("ranges") or clean.get("rounding") is not Rounding.NEAREST:
        return mistakes
    if is_named:
        mistakes.append("per_token without calibration (rounding is 'nearest')")
    if clean.get("activations") is Activations.STATIC:
        mistakes.append("static activations without calibration (rounding is 'nearest')")
    return mistakes


def _contradictions_of_attention(scheme: str, clean: dict[str, Any]) -> list[str]:
    mistakes = []
    if SCHEMES[scheme].linear.code is not Code.FP8:
        mistakes.append(f"fp8_attention with precision {scheme}: it needs fp8")
    if clean.get("opset", _FP8_ATTENTION_OPSET) != _FP8_ATTENTION_OPSET:
        mistakes.append(f"fp8_attention with opset {clean['opset']}: it needs opset 23")
    if clean.get("rounding") is Rounding.NEAREST and not clean.get("ranges"):
        mistakes.append("fp8_attention without calibration (rounding is 'nearest')")
    return mistakes


def _contradictions_of_ranges(clean: dict[str, Any]) -> list[str]:
    """Ranges that are there need no texts: rounding is nearest."""
    texts = sorted({"calibration", "calibration_texts", "calibration_tokens"} & set(clean))
    mistakes = [f"ranges with {', '.join(texts)}"] if texts else []
    if "per_token" in clean:
        mistakes.append("ranges with per_token, which they know")
    if clean.get("keep_share"):
        mistakes.append("ranges with keep_share, which is measured on texts (name them in keep)")
    if clean.setdefault("rounding", Rounding.NEAREST) is Rounding.COMPENSATED:
        mistakes.append("ranges with rounding 'compensated', which finds its own")
    return mistakes


def _contradictions_of_cpu(scheme: str, clean: dict[str, Any]) -> list[str]:
    mistakes = []
    if clean.get("opset", _CPU_OPSET) != _CPU_OPSET:
        mistakes.append(f"precision {scheme} with opset {clean['opset']}: it needs {_CPU_OPSET}")
    if clean.get("engine") is not None:
        mistakes.append(f"precision {scheme} with an engine: it is for ONNX Runtime on the CPU")
    return mistakes


_QUANTIZED_KEYS = {
    "activations",
    "per_token",
    "rotate",
    "rounding",
    "keep",
    "keep_share",
    "fp8_attention",
    "calibration",
    "calibration_texts",
    "calibration_tokens",
    "ranges",
    "seed",
}
