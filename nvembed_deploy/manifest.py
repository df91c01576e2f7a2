"""This file owns the manifest: what an artifact says about itself, and its reading and writing.

It knows one JSON file and the names beside it; the folder is `artifact.py`'s. Reading is strict: a
key that is missing, unknown or of a wrong kind is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

from nvembed_deploy.engine_record import EngineRecord
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.kinds import Kinds, check_kinds, check_values
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
        _check_version(data, path)
        try:
            check_kinds(data, _KINDS, optional=_OPTIONAL)
            return cls(**{k: _PARSERS[k](v) if k in _PARSERS else v for k, v in data.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: {error}", REEXPORT) from error


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an artifact folder, without looking at its other files.

    Raises:
        ArtifactError: there is none, or it cannot be understood.
    """
    manifest_path = Path(path) / LAYOUT.manifest
    try:
        data = json.loads(manifest_path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{path} is no artifact: it has no {LAYOUT.manifest}",
            "give the folder that the exporter wrote",
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{manifest_path} cannot be read: {error}", REEXPORT) from error
    if not isinstance(data, dict):
        raise ArtifactError(
            f"{manifest_path}: got a JSON {type(data).__name__}, expected an object", REEXPORT
        )
    return Manifest.from_dict(data, manifest_path)


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


_OPTIONAL = {"engines"}
"""Keys that manifests of schema 1 have not always had."""
_LONGEST_NAME = 255
"""Of a file, in bytes: more, few disks take."""

# What JSON must hold under each key; the parsers below look inside.
_KINDS: Kinds = {
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
_FILE: Kinds = {"bytes": int, "sha256": str}
_WEIGHTS: Kinds = {"num_parameters": int, "bytes": int}
_ENGINE: Kinds = {
    "flavour": str,
    "version": str,
    "targets": list,
    "profiles": list,
    "facts": dict,
    "seconds": (int, float),
    "options": dict,
    "gpu": (str, NoneType),
}
_FACTS: Kinds = {"fused_attention": int, "linears": dict, "kernels": int}


def _check_version(data: dict[str, Any], path: Path) -> None:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: got schema_version {version!r}, expected {SCHEMA_VERSION}",
            "install the nvembed-deploy that wrote it, or export again with this one",
        )


def _check_name(name: str, where: str) -> None:
    """Check that the name of a file can be one, inside the artifact's folder.

    Raises:
        ValueError: it cannot.
    """
    path = PurePosixPath(name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        size = 0
    is_inside = path.parts and not path.is_absolute() and ".." not in path.parts
    if not is_inside or str(path) != name or "\0" in name or not 0 < size <= _LONGEST_NAME:
        raise ValueError(
            f"{where} has the name {name!r:.80}, expected the relative path of a file in the folder"
        )


def _linears(data: dict[str, Any]) -> dict[str, int]:
    check_values(data, int, "linears")
    return data


def _tools(data: dict[str, Any]) -> dict[str, str]:
    check_values(data, str, "tools")
    return data


def _weights(data: dict[str, Any]) -> WeightsSize:
    check_kinds(data, _WEIGHTS, "weights")
    return WeightsSize(**data)


def _files(data: dict[str, Any]) -> dict[str, FileRecord]:
    for name, record in data.items():
        _check_name(name, "files")
        check_kinds(record, _FILE, f"files[{name!r}]")
    return {name: FileRecord(**record) for name, record in data.items()}


def _engines(data: dict[str, Any]) -> dict[str, EngineRecord]:
    for name, record in data.items():
        _check_name(name, "engines")
        where = f"engines[{name!r}]"
        check_kinds(record, _ENGINE, where, optional=("gpu", "options"))
        check_kinds(record["facts"], _FACTS, f"{where}.facts")
        check_values(record["facts"]["linears"], int, f"{where}.facts.linears")
        check_values({str(i): t for i, t in enumerate(record["targets"])}, str, f"{where}.targets")
    return {name: EngineRecord.from_dict(record) for name, record in data.items()}


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "spec": ModelSpec.from_dict,
    "precision": Precision,
    "pooler_form": PoolerForm,
    "linears": _linears,
    "weights": _weights,
    "tools": _tools,
    "files": _files,
    "engines": _engines,
    "parity": lambda data: data if data is None else check_parity(data),
}
