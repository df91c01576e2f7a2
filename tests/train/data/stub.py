"""A small chat server on this machine: it answers like a model, and fails as it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Stub", int], tuple[int, bytes] | None]
"""Takes the stub and the number of the request; an answer in place of the good one, or None."""


def good_reply(prompt: str, number: int) -> str:
    """Return what a good model would: new tasks, or an example of the task."""
    if prompt.startswith("Think of"):
        return json.dumps([f"Given thing {number} of sort {i}, find its name" for i in range(20)])
    long, short = f"the story of number {number} " * 12, f"name {number}"
    query, positive = (
        (long, short) if '"query": a text of ' in prompt and "label" in prompt else (short, long)
    )
    example = {"query": query, "positive": positive, "negative": f"something else {number}"}
    return f"<think>[1] hm</think>Here it is:\n```json\n{json.dumps(example)}\n```"


class Stub:
    """What was asked, and what the server does instead of answering well."""

    def __init__(self, fault: Fault | None = None, reply: Callable[[str, int], str] = good_reply):
        """Answer well, but for the fault."""
        self.fault, self.reply = fault, reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.location = ""
        self.paths: list[str] = []
        self._lock = threading.Lock()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        self.paths.append(path)
        if path != "/v1/chat/completions":
            return 404, b"no such route"
        request = json.loads(body)
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            number = len(self.requests)
        wrong = self.fault(self, number) if self.fault else None
        if wrong is not None:
            return wrong
        text = self.reply(request["messages"][-1]["content"], number)
        return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    def prompts(self, pattern: str = "") -> list[str]:
        """Return what was asked, in order."""
        texts = [request["messages"][-1]["content"] for request in self.requests]
        return [text for text in texts if re.search(pattern, text)]


@contextmanager
def serve(stub: Stub) -> Iterator[Stub]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = stub.answer(self.path, dict(self.headers), body)
            if status == 0:  # hang up
                self.close_connection = True
                return
            with suppress(OSError):  # who asked may be gone
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0.01")
                if stub.location:
                    self.send_header("Location", stub.location)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def do_GET(self) -> None:
            stub.paths.append(self.path)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
