"""This file owns NV-Embed as a model of Triton's Python backend: requests in, embeddings out.

`runtimes/triton/` is the model repository that loads it. Triton collects requests that come
together; of all their texts those of one instruction are embedded in one call.
Source of the interface: github.com/triton-inference-server/python_backend, README.md.
Legend: N texts, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError, NVEmbedError
from nvembed_deploy.runtimes import RuntimeOptions, load_encoder
from nvembed_deploy.runtimes.encoder import Encoder

TEXT, INSTRUCTION, EMBEDDING = "TEXT", "INSTRUCTION", "EMBEDDING"
"""The model's tensors, as `config.pbtxt` names them."""
_OURS = ("artifact", "runtime", "options")
"""Its parameters."""


@dataclass(frozen=True)
class Settings:
    """What `config.pbtxt` and the instance that Triton starts say.

    Attributes:
        artifact: the folder; a relative one lies in the model's version folder.
        runtime: as `load_encoder` takes it.
        options: how to load it.
    """

    artifact: Path
    runtime: str
    options: RuntimeOptions

    @classmethod
    def of(cls, args: dict[str, str]) -> Settings:
        """Read what Triton gives to `initialize`.

        Raises:
            InputError: an option cannot be read, or nobody reads it.
        """
        entries = json.loads(args["model_config"]).get("parameters", {})
        given = {name: entry["string_value"] for name, entry in entries.items()}
        strange = sorted(name for name in given if name not in _OURS and not name.isupper())
        if strange:  # those in capitals are the backend's own
            raise InputError(
                f"config.pbtxt: nobody reads the parameter {strange[0]!r}",
                f"take one of {', '.join(_OURS)}",
            )
        folder = Path(args["model_repository"], args["model_version"])
        options = given.get("options", "{}")
        try:
            chosen: dict[str, Any] = {"device": _device(args), **json.loads(options)}
            read = RuntimeOptions(**chosen)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"config.pbtxt: options cannot be read: {error}; got {options}",
                'write RuntimeOptions as JSON: {"max_batch_tokens": 16384}',
            ) from error
        return cls(folder / given.get("artifact", "artifact"), given.get("runtime", "auto"), read)


def _device(args: dict[str, str]) -> str | None:
    """Return the instance's device; one of KIND_MODEL chooses itself."""
    on_gpu = f"cuda:{args['model_instance_device_id']}"
    return {"CPU": "cpu", "GPU": on_gpu}.get(args["model_instance_kind"])


class Item(NamedTuple):
    """A text and its instruction; an empty one is none: a passage."""

    text: str
    instruction: str


def embed(encoder: Encoder, items: Sequence[Item]) -> NDArray[np.float32]:
    """Return float32 [N, D], those of one instruction embedded in one call.

    Raises:
        NVEmbedError: one of them cannot be.
    """
    rows_ND = np.empty((len(items), encoder.get_embedding_dimension()), np.float32)
    for instruction in dict.fromkeys(item.instruction for item in items):
        places = [i for i, item in enumerate(items) if item.instruction == instruction]
        texts = [items[i].text for i in places]
        rows_ND[places] = encoder.encode(texts, instruction=instruction or None)
    return rows_ND


def answer(
    encoder: Encoder, requests: Sequence[Sequence[Item]]
) -> list[NDArray[np.float32] | NVEmbedError]:
    """Return the embeddings of each request, or what is wrong with it and with it alone."""
    try:
        rows_ND = embed(encoder, [item for items in requests for item in items])
    except NVEmbedError as error:
        if len(requests) == 1:
            return [error]
        return [alone for items in requests for alone in answer(encoder, [items])]
    ends = np.cumsum([len(items) for items in requests])
    return list(np.split(rows_ND, ends[:-1]))


class TritonPythonModel:
    """What Triton's Python backend looks for in a model's `model.py`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact.

        Raises:
            NVEmbedError: it cannot be; Triton prints why, and the model is not ready.
        """
        self._triton = import_module("triton_python_backend_utils")
        settings = Settings.of(args)
        self._encoder = load_encoder(settings.artifact, settings.runtime, options=settings.options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests that Triton collected."""
        read = [self._read(request) for request in requests]
        good = [items for items in read if not isinstance(items, NVEmbedError)]
        answers = iter(answer(self._encoder, good))
        return [
            self._response(items if isinstance(items, NVEmbedError) else next(answers))
            for items in read
        ]

    def finalize(self) -> None:
        """Free the model's memory."""
        self._encoder.close()

    def _read(self, request: Any) -> list[Item] | InputError:  # noqa: ANN401 - Triton's
        texts = self._strings(request, TEXT)
        instructions = self._strings(request, INSTRUCTION) or [b""] * len(texts)
        if len(instructions) != len(texts):  # Triton lets TEXT be left out where another is not
            return InputError(
                f"{len(texts)} {TEXT} came with {len(instructions)} {INSTRUCTION}",
                f"send a {TEXT} for each {INSTRUCTION}",
            )
        try:
            pairs = zip(texts, instructions, strict=True)
            return [Item(text.decode(), instruction.decode()) for text, instruction in pairs]
        except UnicodeDecodeError as error:
            return InputError(f"a text is no UTF-8: {error}", "encode it as UTF-8")

    def _strings(self, request: Any, name: str) -> list[bytes]:  # noqa: ANN401 - Triton's
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return [] if tensor is None else list(tensor.as_numpy().ravel())

    def _response(self, result: NDArray[np.float32] | NVEmbedError) -> Any:  # noqa: ANN401
        triton = self._triton
        if isinstance(result, NVEmbedError):
            error = triton.TritonError  # over HTTP 400, which no client tries again, or 500
            code = error.INVALID_ARG if isinstance(result, InputError) else error.INTERNAL
            return triton.InferenceResponse([], error(str(result), code))
        return triton.InferenceResponse([triton.Tensor(EMBEDDING, result)])
