"""Search the lines of a file: python examples/search.py ARTIFACT FILE "a question"."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from nvembed_deploy import load_encoder

INSTRUCTION = "Given a question, retrieve passages that answer the question"


def main(artifact: str, file: str, question: str) -> None:
    """Embed the file's lines once, keep them beside it, print the five nearest."""
    text = Path(file).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    model = Path(artifact, "manifest.json").read_bytes()
    kept = Path(f"{file}.{hashlib.sha256(model + text.encode()).hexdigest()[:16]}.npy")
    with load_encoder(artifact) as encoder:
        if not kept.exists():
            np.save(kept, encoder.encode(lines, show_progress_bar=True))
        scores = np.load(kept) @ encoder.encode(question, instruction=INSTRUCTION)
    for index in np.argsort(-scores)[:5]:
        print(f"{scores[index]:.3f}  {lines[index]}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
