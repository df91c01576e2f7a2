"""Serve OpenAI's /v1/embeddings on one box: python examples/serve.py ARTIFACT [PORT]."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import NVEmbedError

encoder = load_encoder(sys.argv[1])  # one for all threads


class Embeddings(BaseHTTPRequestHandler):
    """Takes `input`, a text or a list of them, and an `instruction` of NV-Embed's for queries."""

    def do_POST(self) -> None:
        """Answer with embeddings in the order of the texts."""
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            rows = encoder.encode(texts, instruction=body.get("instruction")).tolist()
            data = [{"object": "embedding", "index": i, "embedding": r} for i, r in enumerate(rows)]
            self._answer(200, {"object": "list", "model": encoder.spec.name, "data": data})
        except (KeyError, TypeError, ValueError, RecursionError, NVEmbedError) as error:
            self._answer(400, {"error": {"message": str(error)}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


port = int((*sys.argv, "8080")[2])
with ThreadingHTTPServer(("127.0.0.1", port), Embeddings) as s:
    print(f"http://127.0.0.1:{s.server_port}/v1/embeddings", flush=True)  # noqa: T201
    s.serve_forever()
