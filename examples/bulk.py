"""Embed a corpus on a Ray cluster: python examples/bulk.py ARTIFACT TEXTS.jsonl OUT [ENCODERS]."""

from __future__ import annotations

import sys
from typing import Any

import ray

from nvembed_deploy import load_encoder


class Embed:
    """One encoder, in a process of its own; it adds `embedding` to rows that have a `text`."""

    def __init__(self, artifact: str) -> None:
        """Load it."""
        self._encoder = load_encoder(artifact)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Embed some rows."""
        return {**rows, "embedding": self._encoder.encode(rows["text"])}


artifact, texts, out = sys.argv[1:4]
ray.init()
gpus = int(ray.cluster_resources().get("GPU", 0))
encoders = int((*sys.argv, str(gpus or 1))[4])
ray.data.read_json(texts, lines=True).map_batches(
    Embed,
    fn_constructor_args=(artifact,),
    batch_size=4096,  # sorted by length inside: many texts pad less
    concurrency=encoders,
    num_gpus=1 if gpus else 0,
    num_cpus=1,
).write_parquet(out)
