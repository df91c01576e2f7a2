"""A server is spoken to in its own words; one that answers otherwise is an error with a remedy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.bench.side import Side, competitor
from nvembed_deploy.bench.subject import open_subject
from nvembed_deploy.errors import InputError
from nvembed_deploy.spec import TextSpec


def row(text: str) -> list[float]:
    """Return a row that says which text it is of."""
    return [float(len(text)), 1.0]


class Embeddings(BaseHTTPRequestHandler):
    """TEI's and OpenAI's routes, OpenAI's answers in reverse order, as its index allows."""

    planted: Any = None
    """What it answers instead, with which status."""

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "the only one"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: Any = [row(text) for text in body.get("inputs", [])]
        if self.path == "/v1/embeddings":
            items = [{"index": i, "embedding": row(t)} for i, t in enumerate(body["input"])]
            answer = {"data": items[::-1]}
        is_known = body.get("model", "the only one") == "the only one"
        is_known &= self.path in {"/embed", "/v1/embeddings"}
        self.answer(*(self.planted or (200 if is_known else 404, answer)))

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """A server on a free port."""
    server = HTTPServer(("127.0.0.1", 0), Embeddings)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        ("tei", ""),
        ("tei", "/embed"),
        ("openai", ""),
        ("openai", "/v1"),
        ("openai", "/v1/embeddings"),
    ],
)
def test_rows_come_back_in_order_over_more_than_one_request(
    kind: str, route: str, address: str
) -> None:
    texts = ["x" * n for n in range(70)]
    rows_ND = open_subject(competitor(f"{kind}={address}{route}")).encode(texts, "")
    assert np.array_equal(rows_ND, np.array([row(text) for text in texts], np.float32))


def test_the_instruction_is_written_before_the_text(address: str) -> None:
    rows_ND = open_subject(competitor(f"tei={address}")).encode(["cat"], "find")
    assert rows_ND[0, 0] == len("Instruct: find\nQuery: cat")
    side = competitor(f"tei={address}").told(TextSpec(instruction_template="task: {instruction}: "))
    assert open_subject(side).encode(["cat"], "find")[0, 0] == len("task: find: cat")


@pytest.mark.parametrize("path", ["/nowhere", ""])
def test_what_is_no_such_server_is_named(path: str, address: str) -> None:
    url = address + path if path else "http://127.0.0.1:9"
    with pytest.raises(InputError, match=r"/embed: .*fix: start the server|/embed"):
        open_subject(Side("s", kind="tei", url=url)).encode(["a"], "")


@pytest.mark.parametrize("kind", ["tei", "openai"])
@pytest.mark.parametrize(
    "rows",
    [[], [[1.0]], [[1.0], [1.0, 2.0]], ["AACAPw==", "AACAPw=="], {"error": "no such model"}],
    ids=["none", "one too few", "of two lengths", "base64", "an error"],
)
def test_an_answer_that_is_not_a_row_for_each_text_is_shown(
    kind: str, rows: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    is_plain = kind == "tei" or isinstance(rows, dict)
    monkeypatch.setattr(Embeddings, "planted", (200, rows if is_plain else {"data": items}))
    with pytest.raises(InputError, match=r"answered .*, expected 2 rows of numbers"):
        open_subject(competitor(f"{kind}={address}")).encode(["a", "b"], "")


def test_what_a_server_says_of_its_error_is_told(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embeddings, "planted", (413, {"error": "batch size 32 > 8"}))
    with pytest.raises(InputError, match=r"HTTP Error 413: .*batch size 32 > 8"):
        open_subject(competitor(f"tei={address}")).encode(["a"], "")
