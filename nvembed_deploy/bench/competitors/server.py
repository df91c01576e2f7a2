"""This file owns measuring a text-embeddings server over HTTP: TEI's route or OpenAI's.

The instruction is written before the text here, so the server must pool as it was set up to; the
cosine with the first side shows whether it does. Legend: N texts, D hidden.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject
from nvembed_deploy.errors import InputError

_BATCH = 32
"""TEI's default limit of one request."""
_TIMEOUT_SECONDS = 600


def open_tei(side: Side) -> Subject:
    """Speak `POST /embed`."""
    return _subject(side, "/embed", lambda texts: {"inputs": texts, "truncate": True}, _rows)


def open_openai(side: Side) -> Subject:
    """Speak `POST /v1/embeddings`."""

    def request(texts: list[str]) -> dict[str, Any]:
        return {"input": texts, "model": "bench"}

    def rows(answer: Any) -> list[list[float]]:  # noqa: ANN401 - JSON
        return [item["embedding"] for item in sorted(answer["data"], key=lambda i: i["index"])]

    return _subject(side, "/v1/embeddings", request, rows)


def _rows(answer: Any) -> list[list[float]]:  # noqa: ANN401 - JSON
    return list(answer)


def _subject(
    side: Side,
    route: str,
    request: Callable[[list[str]], dict[str, Any]],
    rows: Callable[[Any], list[list[float]]],
) -> Subject:
    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        prefix = side.instruction_template.format(instruction=instruction)
        whole = [prefix * bool(instruction) + text for text in texts]
        found: list[list[float]] = []
        for start in range(0, len(whole), _BATCH):
            answer = _post(side.url + route, request(whole[start : start + _BATCH]))
            try:
                found += rows(answer)
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"{side.url}{route} answered {str(answer)[:100]}, expected embeddings",
                    "check the address and which of tei= and openai= the server speaks",
                ) from error
        return np.asarray(found, dtype=np.float32)

    return Subject(encode, None, {"runtime": f"{side.kind} server", "device": side.url})


def _post(url: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise InputError(f"{url}: {error}", "start the server, or correct the address") from error
