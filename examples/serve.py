"""Serve OpenAI's /v1/embeddings on one box: python examples/serve.py ARTIFACT [PORT]."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import InputError, NVEmbedError

encoder = load_encoder(sys.argv[1])  # one for all threads


class Embeddings(BaseHTTPRequestHandler):
    """Takes OpenAI's `input`, `dimensions` and `encoding_format`, and NV-Embed's `instruction`."""

    def do_POST(self) -> None:
        """Answer with embeddings in the order of the texts."""
        try:
            size = int(self.headers["Content-Length"] or -1)
            if not 0 <= size <= 8 << 20:
                raise InputError("Content-Length is missing or too large", "send fewer texts")
            body = json.loads(self.rfile.read(size))
            if not isinstance(body, dict) or "input" not in body:
                raise InputError("the body has no `input`", 'send {"input": ["a text"]}')
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            task, width = body.get("instruction"), body.get("dimensions")
            rows = encoder.encode(texts, instruction=task, truncate_dim=width).astype("<f4")
            is_packed = body.get("encoding_format") == "base64"  # OpenAI's clients ask for it
            rows = [base64.b64encode(r).decode() if is_packed else r.tolist() for r in rows]
            data = [{"object": "embedding", "index": i, "embedding": r} for i, r in enumerate(rows)]
            self._answer(200, {"object": "list", "model": encoder.spec.name, "data": data})
        except (ValueError, RecursionError, NVEmbedError) as error:
            self._answer(400, {"error": {"message": str(error)}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


port = int((*sys.argv, "8080")[2])
with ThreadingHTTPServer(("127.0.0.1", port), Embeddings) as s, suppress(KeyboardInterrupt):
    print(f"http://127.0.0.1:{s.server_port}/v1/embeddings", flush=True)  # noqa: T201
    s.serve_forever()
