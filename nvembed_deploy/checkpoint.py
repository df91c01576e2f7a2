"""This file owns on-disk contract 1, the checkpoint folder: finding, validating and writing one.

Two layouts are read, both without running any code from the folder and without unpickling:

1. released: NV-Embed's own (`config.json` with model_type "nvembed", sharded safetensors);
2. assembled: `checkpoint.json` naming a base decoder (a Mistral/Llama-family folder, a released
   one or a GGUF file), an optional PEFT adapter folder and the pooler's safetensors file.

It does no arithmetic and knows no tensor names: `model/weights.py` does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from types import NoneType
from typing import Any, Protocol, TypeVar

import numpy as np

from nvembed_deploy.config import (
    backbone_from_config,
    read_json,
    released_spec,
    text_from_config,
)
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.kinds import Kinds, check_kinds, check_values
from nvembed_deploy.spec import ModelSpec, PoolerSpec, TextSpec, template_fault, with_values
from nvembed_deploy.staging import names_in
from nvembed_deploy.tensorfile import open_tensor_folder, open_tensors

DESCRIPTION = "checkpoint.json"
SCHEMA_VERSION = 1
_RELEASED = "nvembed"
"""The released config's model_type."""
_KINDS: Kinds = {
    "schema_version": int,
    "name": (str, NoneType),
    "base": (str, NoneType),
    "adapter": (str, NoneType),
    "pooler": (str, NoneType),
    "pooler_spec": (dict, NoneType),
    "causal": (bool, NoneType),
    "text": (dict, NoneType),
    "prompts": (dict, NoneType),
}
_PARTS = ("base", "adapter", "pooler")
_Part = TypeVar("_Part", PoolerSpec, TextSpec)


class Tensor(Protocol):
    """One tensor on disk, read whole or by rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def path(self) -> Path:
        """The file that holds it."""
        ...

    def read(self, rows: slice | None = None) -> np.ndarray:
        """Return it, or `rows` of its first axis, in its stored dtype."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its spec and where each tensor lies, under the names its files use.

    `adapter` is a PEFT folder or None; `tokenizer` a tokenizer.json or the GGUF file itself.
    """

    path: Path
    spec: ModelSpec
    backbone: Mapping[str, Tensor]
    pooler: Mapping[str, Tensor]
    adapter: Path | None
    tokenizer: Path


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder of either layout.

    Raises:
        CheckpointError: the folder, its description or one of its files cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"checkpoint {path} does not exist", "give the path of a checkpoint folder"
        )
    if path.is_file():
        raise CheckpointError(
            f"checkpoint {path} is a file, expected a folder",
            f"make a checkpoint of it: nvembed-deploy assemble {quote(str(path))} OUT",
        )
    if (path / DESCRIPTION).exists():
        return _open_assembled(path)
    config_path = path / "config.json"
    if not config_path.exists():
        raise CheckpointError(
            f"{path} is no checkpoint: it has neither {DESCRIPTION} nor config.json",
            "point at an NV-Embed folder, or write one: nvembed-deploy assemble BASE OUT",
        )
    config = read_json(config_path)
    if config.get("model_type") != _RELEASED:
        raise CheckpointError(
            f"{config_path}: got model_type {config.get('model_type')!r}, expected {_RELEASED!r}",
            f"a plain decoder needs a pooler: nvembed-deploy assemble {quote(str(path))} OUT",
        )
    spec, tensors, tokenizer = open_base(path)
    return Checkpoint(path, spec, tensors, tensors, adapter=None, tokenizer=tokenizer)


def _open_assembled(path: Path) -> Checkpoint:
    description = read_json(path / DESCRIPTION)
    _check_description(description, path / DESCRIPTION)
    base = _part(path, description, "base")
    spec, backbone, tokenizer = open_base(base)
    where = path / DESCRIPTION
    pooler_spec = _changed(spec.pooler, description, "pooler_spec", where)
    spec = replace(
        spec,
        backbone=replace(spec.backbone, causal=description.get("causal") or False),
        pooler=pooler_spec,
        name=description.get("name") or path.name,
        prompts=description.get("prompts") or {},
        text=_changed(spec.text, description, "text", where),
    )
    _check_template(spec.text, where)
    has_pooler = pooler_spec.pooling.has_weights
    own_tokenizer = path / "tokenizer.json"
    return Checkpoint(
        path=path,
        spec=spec,
        backbone=backbone,
        pooler=open_tensors(_part(path, description, "pooler")) if has_pooler else {},
        adapter=_part(path, description, "adapter") if description.get("adapter") else None,
        tokenizer=own_tokenizer if own_tokenizer.exists() else tokenizer,
    )


def foreign_files(folder: Path) -> list[str]:
    """Return the files of an assembled checkpoint's folder that its description does not name.

    Raises:
        CheckpointError: the description is not one of ours.
    """
    description = read_json(folder / DESCRIPTION)
    _check_description(description, folder / DESCRIPTION)
    parts = [folder / description[key] for key in _PARTS if description.get(key)]
    ours = {Path(os.path.relpath(part, folder)).as_posix() for part in parts}
    ours |= {DESCRIPTION, "tokenizer.json"}
    inside = tuple(f"{name}/" for name in ours)
    return [name for name in names_in(folder) if name not in ours and not name.startswith(inside)]


def place_of(part: Path) -> Path:
    """Return where a base, a pooler or a tokenizer lies, free of links to the folder.

    A file's own name stays: the hub's cache links it to a blob that has neither its name nor its
    neighbours, and both tell what a GGUF file is.
    """
    return part.resolve() if part.is_dir() else part.parent.resolve() / part.name


def is_released(folder: Path) -> bool:
    """Return whether a folder is in the released layout."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == _RELEASED


def open_base(base: Path) -> tuple[ModelSpec, Mapping[str, Tensor], Path]:
    """Open a base decoder: a Hugging Face folder, a released NV-Embed folder or a GGUF file.

    Returns:
        Its spec (with default pooler sizes, or a released pooler's), its tensors and its tokenizer.

    Raises:
        CheckpointError: it is neither, or not of a family that can be used.
    """
    if base.suffix == ".gguf":
        from nvembed_deploy.gguf import open_gguf

        gguf = open_gguf(base)
        text = TextSpec(bos_id=gguf.bos_id, eos_id=gguf.eos_id, pad_id=gguf.eos_id)
        beside = base.with_name("tokenizer.json")
        tokenizer = beside if beside.exists() else base
        return ModelSpec(backbone=gguf.backbone, text=text), gguf.entries, tokenizer
    if not base.is_dir():
        raise CheckpointError(
            f"base {base} is neither a folder nor a .gguf file",
            "name a Mistral/Llama-family folder (config.json, safetensors) or a GGUF file: one "
            "whose name ends otherwise (T.GGUF, Ollama's blobs) by a link that ends in .gguf",
        )
    if (base / DESCRIPTION).exists() and not (base / "config.json").exists():
        raise CheckpointError(
            f"base {base} is a checkpoint itself, expected a plain decoder",
            f"export it as it is, or name the base that its {DESCRIPTION} names",
        )
    config = read_json(base / "config.json")
    if config.get("model_type") == _RELEASED:
        return released_spec(config, base), open_tensor_folder(base), _tokenizer(base)
    spec = ModelSpec(
        backbone=backbone_from_config(config, base / "config.json"),
        text=text_from_config(config, base / "config.json"),
    )
    return spec, open_tensor_folder(base), _tokenizer(base)


def _check_description(description: dict[str, Any], path: Path) -> None:
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: got schema_version {version!r}, expected {SCHEMA_VERSION}",
            "write the checkpoint again with this version of nvembed-deploy, or update it",
        )
    try:
        check_kinds(description, _KINDS, optional=_KINDS)
        check_values(description.get("prompts") or {}, str, "prompts")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}", f"correct it; the keys are {sorted(_KINDS)}"
        ) from error
    # They would break a table.
    for name in (description.get("name") or "", *(description.get("prompts") or {})):
        if not name.isprintable():
            problem = f"the name {name!r} is not one line of printable text"
            raise CheckpointError(f"{path}: {problem}", "correct it")


def _part(path: Path, description: dict[str, Any], key: str) -> Path:
    value = description.get(key)
    if not isinstance(value, str):
        raise CheckpointError(
            f"{path / DESCRIPTION}: {key!r} is {value!r}, expected a path",
            f"name the {key} relative to {path}",
        )
    part = place_of(path / value)
    if not part.exists():
        raise CheckpointError(
            f"{path / DESCRIPTION}: {key} {value!r} leads to {part}, which does not exist",
            f"put the {key} there, or correct the path",
        )
    return part


def _changed(spec: _Part, description: dict[str, Any], section: str, path: Path) -> _Part:
    """Return `spec` with the values that a section of the description states, checked."""
    try:
        return with_values(spec, description.get(section) or {})
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {section}.{error}",
            f"correct or remove it; the keys are {sorted(asdict(spec))}",
        ) from error


def _check_template(text: TextSpec, path: Path) -> None:
    fault = template_fault(text)
    if fault:
        raise CheckpointError(
            f"{path}: {fault}", "write {instruction} where the task goes, and {{ }} for braces"
        )


def _tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            "copy the model's tokenizer.json there (a sentencepiece tokenizer.model is converted "
            "by transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))",
        )
    return path


def write_tokenizer(checkpoint: Checkpoint, out: Path) -> None:
    """Write the checkpoint's tokenizer.json to `out`, building it if the base is a GGUF file."""
    if checkpoint.tokenizer.suffix == ".gguf":
        from nvembed_deploy.gguf_tokenizer import tokenizer_from_gguf

        out.write_text(tokenizer_from_gguf(checkpoint.tokenizer).to_str(), encoding="utf-8")
    else:
        shutil.copyfile(checkpoint.tokenizer, out)
