"""This file owns the manifest: what an artifact says about itself, and its reading and writing.

It knows one JSON file and the names beside it; the folder is `artifact.py`'s. Reading is strict: a
key that is missing, unknown or of a wrong kind is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from nvembed_deploy.engine_record import EngineRecord
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.spec import ModelSpec, PoolerForm, Precision

SCHEMA_VERSION = 1
REEXPORT = "export the checkpoint again, or copy the complete folder again"


@dataclass(frozen=True)
class Layout:
    """Names inside an artifact folder.

    `weights` is a safetensors file whose tensor names are the graph's initializer names; the
    graph refers to it by offset.
    """

    manifest: str = "manifest.json"
    graph: str = "model.onnx"
    weights: str = "model.onnx_data"
    tokenizer: str = "tokenizer.json"
    config: str = "config.json"
    calibration: str = "calibration.json"
    engines: str = "engines"


LAYOUT = Layout()


@dataclass(frozen=True)
class FileRecord:
    """What a listed file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class WeightsSize:
    """How much the graph weighs."""

    num_parameters: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything an artifact says about itself.

    Attributes:
        spec: sizes, text rules and prompts of the model.
        precision: number format of the graph.
        opset: ONNX opset of the graph.
        pooler_form: how the pooler is written.
        linears: how many linears are in each number format.
        weights: their number and size.
        recipe: the resolved export recipe.
        source: the checkpoint: its name and the sha256 of its key files.
        tools: versions of the packages that made it.
        created: ISO time.
        files: every file of the folder but the manifest, by relative name.
        check: numbers of the exporter's own check, if it ran.
        parity: verdict of the parity suite: `passed` and its numbers, if it ran.
        engines: every TensorRT plan of the folder, by relative name.
    """

    spec: ModelSpec
    precision: Precision
    opset: int
    pooler_form: PoolerForm
    linears: dict[str, int]
    weights: WeightsSize
    recipe: dict[str, Any]
    source: dict[str, Any]
    tools: dict[str, str]
    created: str
    files: dict[str, FileRecord] = field(default_factory=dict)
    check: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    engines: dict[str, EngineRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def has_passed_parity(self) -> bool:
        """Whether the parity suite ran on this artifact and passed."""
        return self.parity is not None and self.parity.get("passed") is True

    @property
    def is_quantized(self) -> bool:
        """Whether any linear is stored in other numbers than the graph's own."""
        return not {precision.value for precision in Precision}.issuperset(self.linears)

    @property
    def is_for_cpu(self) -> bool:
        """Whether the graph is written in operators that ONNX Runtime has on the CPU alone."""
        return self.recipe.get("kernels") == "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path) -> Manifest:
        """Build a manifest from `to_dict`'s data.

        Args:
            data: parsed JSON.
            path: where it was read, for messages.

        Raises:
            ArtifactError: another schema version, or a key missing, unknown or of a wrong kind.
        """
        _check_json(data, path)
        try:
            return cls(**{k: _PARSERS[k](v) if k in _PARSERS else v for k, v in data.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: {error}", REEXPORT) from error


def check_parity(verdict: dict[str, Any]) -> dict[str, Any]:
    """Return a parity verdict that says `passed`.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(verdict, dict) or not isinstance(verdict.get("passed"), bool):
        raise ValueError(  # noqa: TRY004 - one kind of error, whatever is wrong with the JSON
            f"parity is {verdict!r}, expected an object with a boolean 'passed'"
        )
    return verdict


def _files(data: dict[str, Any]) -> dict[str, FileRecord]:
    return {name: FileRecord(**record) for name, record in data.items()}


def _engines(data: dict[str, Any]) -> dict[str, EngineRecord]:
    return {name: EngineRecord.from_dict(record) for name, record in data.items()}


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "spec": ModelSpec.from_dict,
    "precision": Precision,
    "pooler_form": PoolerForm,
    "weights": lambda data: WeightsSize(**data),
    "files": _files,
    "engines": _engines,
    "parity": lambda data: data if data is None else check_parity(data),
}

# What JSON must hold under each key; the parsers above look inside.
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "spec": dict,
    "precision": str,
    "opset": int,
    "pooler_form": str,
    "linears": dict,
    "weights": dict,
    "recipe": dict,
    "source": dict,
    "tools": dict,
    "created": str,
    "files": dict,
    "check": (dict, NoneType),
    "parity": (dict, NoneType),
    "engines": dict,
    "schema_version": int,
}
_OPTIONAL = {"engines"}
"""Keys that manifests of schema 1 have not always had."""


def _check_json(data: dict[str, Any], path: Path) -> None:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: got schema_version {version!r}, expected {SCHEMA_VERSION}",
            "install the nvembed-deploy that wrote it, or export again with this one",
        )
    missing = sorted(_JSON_TYPES.keys() - data.keys() - _OPTIONAL)
    unknown = sorted(data.keys() - _JSON_TYPES)
    if missing or unknown:
        raise ArtifactError(f"{path}: missing keys {missing}, unknown keys {unknown}", REEXPORT)
    for key, expected in _JSON_TYPES.items():
        if key in data and not isinstance(data[key], expected):
            kinds = expected if isinstance(expected, tuple) else (expected,)
            raise ArtifactError(
                f"{path}: {key} is a {type(data[key]).__name__}, expected "
                f"{' or '.join(kind.__name__ for kind in kinds)}",
                REEXPORT,
            )
