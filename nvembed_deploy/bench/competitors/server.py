"""This file owns measuring a text-embeddings server over HTTP: TEI's route or OpenAI's.

The instruction is written before the text here, so the server must pool as it was set up to; the
cosine with the first side shows whether it does. Legend: N texts, D hidden.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject
from nvembed_deploy.errors import InputError

_BATCH = 32
"""TEI's default limit of one request."""
_TIMEOUT_SECONDS = 600
_MOST_SHOWN = 200
"""Characters of an answer that an error shows."""


def open_tei(side: Side) -> Subject:
    """Speak `POST /embed`."""
    url = side.url.removesuffix("/embed") + "/embed"
    return _subject(side, url, lambda texts: {"inputs": texts, "truncate": True}, list)


def open_openai(side: Side) -> Subject:
    """Speak `POST /v1/embeddings`, of the first model that `GET /v1/models` names.

    A server that lists none takes whatever name it is given. The address may end in `/v1`, as that
    of OpenAI's clients does.
    """
    url = side.url.removesuffix("/embeddings").removesuffix("/v1") + "/v1"
    try:
        model = _send(f"{url}/models")["data"][0]["id"]
    except (InputError, LookupError, TypeError):
        model = "bench"

    def rows(answer: Any) -> list[list[float]]:  # noqa: ANN401 - JSON
        return [item["embedding"] for item in sorted(answer["data"], key=lambda i: i["index"])]

    def request(texts: list[str]) -> dict[str, Any]:
        return {"input": texts, "model": model}

    return _subject(side, f"{url}/embeddings", request, rows)


def _subject(
    side: Side,
    url: str,
    request: Callable[[list[str]], dict[str, Any]],
    rows: Callable[[Any], list[list[float]]],
) -> Subject:
    def embed(texts: list[str]) -> NDArray[np.float32]:
        answer = _send(url, request(texts))
        try:
            rows_ND = np.asarray(rows(answer), dtype=np.float32)
        except (LookupError, TypeError, ValueError):
            rows_ND = np.empty(0, np.float32)
        if rows_ND.ndim != 2 or len(rows_ND) != len(texts):  # noqa: PLR2004 - [N, D]
            shown = str(answer)[:_MOST_SHOWN]
            raise InputError(
                f"{url} answered {shown}, expected {len(texts)} rows of numbers",
                "check the address and which of tei= and openai= the server speaks",
            )
        return rows_ND

    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        prefix = side.instruction_template.format(instruction=instruction) if instruction else ""
        whole = [prefix + text for text in texts]
        starts = range(0, len(whole), _BATCH)
        return np.concatenate([embed(whole[start : start + _BATCH]) for start in starts])

    return Subject(encode, None, {"runtime": f"{side.kind} server", "device": side.url})


def _send(url: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
    """POST a body, or GET where there is none; return the answer.

    Raises:
        InputError: there is none, or it is an error's; its words are in the message.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(_MOST_SHOWN).decode(errors="replace").strip()
        raise InputError(
            f"{url}: {error}" + f", {said}" * bool(said),
            "correct the address, or give the server what it asks for",
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url}: {error}", "start the server, or correct the address") from error
