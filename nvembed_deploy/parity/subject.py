"""This file owns one side of a comparison: an encoder, its cache, and the texts it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.parity.cache import EmbeddingCache, text_key
from nvembed_deploy.runtimes.encoder import Encoder

_WINDOW = 256
"""Texts computed between two writes to the cache."""
_KEPT = 3000
"""Texts that are remembered, to compare both sides' embeddings: a benchmark has millions."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Text:
    """A text as a task asked for it. `role` is query, document, or empty for either side."""

    instruction: str
    text: str
    role: str


@dataclass
class Subject:
    """An encoder under test, or the reference."""

    name: str
    encoder: Encoder
    cache: EmbeddingCache
    seen: dict[bytes, Text] = field(default_factory=dict)
    """Texts by their key: all, or of more than `_KEPT` those of the lowest keys, a fair sample."""
    advance: Advance = lambda _: None

    @classmethod
    def open(cls, name: str, encoder: Encoder, folder: Path) -> Subject:
        """Join an encoder with its cache folder."""
        return cls(name, encoder, EmbeddingCache(folder, encoder.get_embedding_dimension()))

    def embed(self, texts: list[str], instruction: str, role: str = "") -> NDArray[np.float32]:
        """Return [N, D] of length 1, computing only what is not cached."""
        keys = [text_key(instruction, text) for text in texts]
        for key, text in zip(keys, texts, strict=True):
            self.seen.setdefault(key, Text(instruction, text, role))
        if len(self.seen) > _KEPT:
            self.seen = dict(sorted(self.seen.items())[:_KEPT])
        missing = self.cache.missing(keys)
        self.advance(len(texts) - len(missing))
        for start in range(0, len(missing), _WINDOW):
            window = missing[start : start + _WINDOW]
            rows_ND = self.encoder.encode(
                [texts[i] for i in window], instruction=instruction, show_progress_bar=False
            )
            self.cache.add([keys[i] for i in window], rows_ND)
            self.advance(len(window))
        return self.cache.get(keys)
