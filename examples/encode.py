"""Embed texts with an artifact: python examples/encode.py build/demo/artifact."""

from __future__ import annotations

import sys

from nvembed_deploy import load_encoder

INSTRUCTION = "Given a question, retrieve passages that answer the question"

with load_encoder(sys.argv[1]) as encoder:
    query = encoder.encode("which planet has rings?", instruction=INSTRUCTION)
    passages = encoder.encode(["Saturn has rings of ice and rock.", "An egg boils in six minutes."])
    print(f"{query.shape} {passages.shape} {query.dtype}")  # noqa: T201
    print(encoder.similarity(query, passages).round(3))  # noqa: T201
