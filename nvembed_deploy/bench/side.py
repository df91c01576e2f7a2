"""This file owns what is measured: a side, which is one way to run the model, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Self

from nvembed_deploy.errors import InputError, MissingPackageError
from nvembed_deploy.spec import TextSpec

OURS = "ours"
COMPETITORS = {
    "sentence-transformers": "its defaults: float32, batches of 32 sorted by characters",
    "sentence-transformers-best": "the same in bfloat16",
    "transformers": "a plain forward as model cards show it: padded, autocast, given order",
    "onnx-traced": "ONNX Runtime on torch.onnx.export's graph, batches of 32, sorted",
}
_PACKAGES = {
    "sentence-transformers": ("sentence_transformers",),
    "sentence-transformers-best": ("sentence_transformers",),
    "transformers": (),
    "onnx-traced": ("onnx", "onnxruntime", "onnxscript"),
}
"""What each imports beside torch, transformers and safetensors."""
SERVERS = {
    "tei": "a server with TEI's /embed, as tei=http://host:port",
    "openai": "a server with OpenAI's /v1/embeddings, as openai=http://host:port",
}


@dataclass(frozen=True)
class Side:
    """One way to run the model.

    Attributes:
        name: what tables call it; no two sides of a run share one.
        kind: "ours", or a key of `COMPETITORS` or `SERVERS`.
        path: an artifact or checkpoint; of a competitor the folder that `weights.prepare` wrote.
        url: where a server listens.
        runtime: of ours: a name in `runtimes.RUNTIMES`, or "auto".
        device: "cpu", "cuda", ...; None takes a GPU where there is one.
        threads: processor threads; None leaves the library its own choice.
        dtype: number format of ours where torch runs it; None is its own choice.
        instruction_template: of a server, which is given whole texts: the first side's.
    """

    name: str
    kind: str = OURS
    path: str = ""
    url: str = ""
    runtime: str = "auto"
    device: str | None = None
    threads: int | None = None
    dtype: str | None = None
    instruction_template: str = TextSpec.instruction_template

    @property
    def needs_weights(self) -> bool:
        """Whether it is a competitor that runs the checkpoint's weights here."""
        return self.kind in COMPETITORS

    def told(self, text: TextSpec) -> Self:
        """Return it with what a server does not know of the model."""
        return replace(self, instruction_template=text.instruction_template)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read `to_dict`'s data."""
        return cls(**data)


def own_sides(given: Iterable[str], runtimes: Iterable[str]) -> list[Side]:
    """Return a side for each folder (`PATH` or `NAME=PATH`) and each runtime.

    Raises:
        InputError: a folder does not exist, or two sides have one name.
    """
    runtimes = list(runtimes) or ["auto"]
    sides = []
    for text in given:
        name, path = _split(text)
        if not path.is_dir():
            raise InputError(f"{path} is no folder", "give an artifact or a checkpoint")
        for runtime in runtimes:
            label = name if len(runtimes) == 1 else f"{name}/{runtime}"
            sides.append(Side(label, path=str(path), runtime=runtime))
    return sides


def _split(text: str) -> tuple[str, Path]:
    name, is_named, path = text.partition("=")
    if is_named and "/" not in name and not Path(text).exists():
        return name, Path(path)
    return Path(text).resolve().name, Path(text)


def competitor(text: str) -> Side:
    """Return the side that a word of `--against` names.

    Raises:
        InputError: there is no such competitor, or a server has no address.
    """
    kind, _, url = text.partition("=")
    if kind in COMPETITORS and not url:
        return Side(kind, kind=kind)
    if kind in SERVERS:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--against {text} has no address", f"{kind}=http://host:port")
        return Side(kind, kind=kind, url=url.rstrip("/"))
    raise InputError(
        f"--against is {text!r}, expected one of {', '.join([*COMPETITORS, *SERVERS])}",
        "leave it out to measure the artifact alone",
    )


def check_packages(sides: Iterable[Side]) -> None:
    """Miss what competitors need now, not after all their weights were written.

    Raises:
        MissingPackageError: all that are missing are named.
    """
    packages = (
        package
        for side in sides
        if side.needs_weights
        for package in ("torch", "transformers", "safetensors", *_PACKAGES[side.kind])
    )
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"the competitors need {', '.join(missing)}",
            f"pip install {' '.join(missing).replace('_', '-')}",
        )


def with_distinct_names(sides: list[Side]) -> list[Side]:
    """Number the sides that share a name, past names that are given."""
    given, named = {side.name for side in sides}, dict[str, Side]()
    for side in sides:
        names = (f"{side.name} #{number}" for number in count(2))
        name = side.name
        if name in named:
            name = next(name for name in names if name not in named and name not in given)
        named[name] = replace(side, name=name)
    return list(named.values())
