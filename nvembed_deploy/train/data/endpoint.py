"""This file owns talking to a language model: any server with OpenAI's chat completions route.

What may pass is tried again, later each time: a busy or restarting server, a lost connection. What
will not pass (a wrong key, an unknown model) is an error at once.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.prompts import Message

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_LONGEST_WAIT_SECONDS = 60.0
_SHOWN = 200


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: there the request would be another, and the key in other hands."""

    def redirect_request(self, *_: object) -> None:
        """Leave the redirection an error."""


_OPENER = urllib.request.build_opener(_Stay)


class ClosedError(Exception):
    """The endpoint was closed while an answer was waited for; nobody wants it any more."""


class _PassingError(Exception):
    """May be gone the next time; `wait_seconds` is what the server asks for."""

    def __init__(self, problem: str, wait_seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Endpoint:
    """A model behind a URL such as http://localhost:8000/v1."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    temperature: float = 1.0
    max_tokens: int = 2048
    timeout_seconds: float = 300.0
    tries: int = 6
    first_wait_seconds: float = 1.0
    closed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the URL.

        Raises:
            InputError: it is none of the web, or holds more than a host and a path.
        """
        if not _is_endpoint(self.url):
            raise InputError(
                "the endpoint is no http(s) URL of a host and a path alone",
                "write http://localhost:8000/v1; a key goes into --api-key-env's variable",
            )

    def answer(self, messages: Sequence[Message]) -> str:
        """Return the model's text. Safe to call from several threads.

        Raises:
            InputError: the server refuses, or still fails after all tries.
            ClosedError: the endpoint was closed.
        """
        problem = ""
        for number in range(self.tries):
            if self.closed.is_set():
                raise ClosedError
            try:
                return self._ask(messages)
            except _PassingError as error:
                problem = str(error)
                wait = min(self.first_wait_seconds * 2**number, _LONGEST_WAIT_SECONDS)
                wait = max(wait * random.uniform(0.5, 1.0), error.wait_seconds)
            if number + 1 < self.tries:
                self.closed.wait(wait)
        raise InputError(
            f"{self.url} failed {self.tries} times, last with: {problem}",
            "see to the server and run the same command again: it goes on where it was",
        )

    def close(self) -> None:
        """Ask nothing any more, and wake those who wait for another try."""
        self.closed.set()

    def _ask(self, messages: Sequence[Message]) -> str:
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with _OPENER.open(request, timeout=self.timeout_seconds) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, lost lines
            raise _PassingError(f"{type(error).__name__}: {error}") from None
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            problem = f"an answer without choices[0].message.content: {self._shown(body)}"
            raise _PassingError(problem) from None
        return text if isinstance(text, str) else ""

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = self._shown(error.read())
        except (OSError, http.client.HTTPException):
            said = ""
        other = error.headers.get("Location")
        there = f" to {other}" if other else ""
        problem = f"{error.code} {error.reason}{there}: {said}".strip(": \n")
        if error.code in _PASSING:
            return _PassingError(problem, _wait_seconds(error.headers.get("Retry-After")))
        return InputError(
            f"{self.url} refuses model {self.model!r}: {problem}", "correct URL, model or key"
        )

    def _shown(self, body: bytes) -> str:
        """Return the beginning of what a server says, without the key if it says that."""
        text = body.decode(errors="replace")
        return (text.replace(self.key, "***") if self.key else text)[:_SHOWN]


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_host = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and not set(" ?#") & set(url)
    return parts.scheme in {"http", "https"} and is_host and is_plain


def _wait_seconds(header: str | None) -> float:
    """Return what Retry-After asks for, if it is a number; within reason."""
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_WAIT_SECONDS)
    except ValueError:
        return 0.0
