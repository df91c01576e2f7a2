"""This file owns what a worker measures: a side that is open, and the table of who opens which.

Each opener is imported when its side is measured, so that no side pays for another's packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.bench.side import OURS, Side
from nvembed_deploy.spec import Precision

Encode = Callable[[list[str], str], NDArray[np.float32]]
"""Texts and their instruction (empty: passages) to L2-normalised rows [N, D]."""
Tokenize = Callable[[list[str], str], list[int]]
"""Texts and their instruction to the number of real tokens of each, BOS and EOS included."""

_COMPETITORS = "nvembed_deploy.bench.competitors."
_OPENERS = {
    OURS: "nvembed_deploy.bench.subject:open_encoder",
    "sentence-transformers": _COMPETITORS + "sentence_encoder:open_default",
    "sentence-transformers-best": _COMPETITORS + "sentence_encoder:open_best",
    "transformers": _COMPETITORS + "plain_forward:open_plain",
    "onnx-traced": _COMPETITORS + "traced_graph:open_traced",
    "tei": _COMPETITORS + "server:open_tei",
    "openai": _COMPETITORS + "server:open_openai",
}


@dataclass(frozen=True)
class Subject:
    """A side that is open.

    Attributes:
        encode: the whole way from texts to rows, as a user calls it.
        tokenize: its tokenisation alone; None where it cannot be seen (a server).
        facts: where and in which number format it runs.
    """

    encode: Encode
    tokenize: Tokenize | None
    facts: dict[str, Any] = field(default_factory=dict)


def open_subject(side: Side) -> Subject:
    """Open a side in this process."""
    module, _, name = _OPENERS[side.kind].partition(":")
    subject: Subject = getattr(import_module(module), name)(side)
    return subject


def open_encoder(side: Side) -> Subject:
    """Open one of ours, as `load_encoder` does for everyone."""
    from nvembed_deploy.runtimes import RuntimeOptions, load_encoder

    dtype = Precision(side.dtype) if side.dtype else None
    options = RuntimeOptions(device=side.device, threads=side.threads, dtype=dtype)
    encoder = load_encoder(Path(side.path), side.runtime, options=options)

    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        rows_ND: NDArray[np.float32] = encoder.encode(texts, instruction=instruction or None)
        return rows_ND

    def tokenize(texts: list[str], instruction: str) -> list[int]:
        tokens = encoder.tokenizer.tokenize(
            texts, instruction=instruction, max_tokens=encoder.max_seq_length
        )
        return [len(text.ids) for text in tokens]

    runtime = encoder.runtime
    facts = {"runtime": runtime.name, "device": runtime.device, "dtype": _dtype(side, runtime)}
    return Subject(encode, tokenize, facts | {"spec": encoder.spec.to_dict()})


def _dtype(side: Side, runtime: Any) -> str:  # noqa: ANN401 - a Runtime; torch's holds a model
    """Return the number format of most linears of an artifact, or of a torch model."""
    from nvembed_deploy.artifact import is_artifact, open_artifact

    path = Path(side.path)
    manifest = open_artifact(path).manifest if is_artifact(path) else None
    if manifest is not None and (runtime.name != "torch" or manifest.is_quantized):
        return max(manifest.linears, key=lambda name: manifest.linears[name])
    if side.dtype:
        return side.dtype
    if runtime.device == "cpu":
        return "fp32"
    return "bf16" if manifest is None else str(manifest.precision)
