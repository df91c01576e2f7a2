"""This file owns which examples a step sees: weighted sources, shuffled, resumable to the example.

The state is a random generator and one count per source; nothing else is remembered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nvembed_deploy.train.example import Example
from nvembed_deploy.train.sources import Source


@dataclass(frozen=True)
class Blend:
    """How examples are drawn."""

    weights: tuple[float, ...]
    hard_negatives: int
    one_source: bool
    """All examples of a batch come from one source."""


class Mixture:
    """An endless supply of examples; each source is passed through in its own random order."""

    def __init__(self, sources: Sequence[Source], blend: Blend, seed: int) -> None:
        """Begin at the first example."""
        self._sources = sources
        self._blend = blend
        self._seed = seed
        self._drawn = [0] * len(sources)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._random = np.random.default_rng(seed)
        weights = np.array(blend.weights, np.float64)
        self._shares = weights / weights.sum()

    def draw(self, count: int) -> list[Example]:
        """Return the next examples, each with at most `hard_negatives` negatives."""
        choices = self._random.choice(len(self._sources), size=count, p=self._shares)
        if self._blend.one_source:
            choices[:] = choices[0]
        return [self._trimmed(self._next(int(source))) for source in choices]

    def state_dict(self) -> dict[str, Any]:
        """Return where it is, as plain data."""
        random = json.loads(json.dumps(self._random.bit_generator.state))
        return {"drawn": list(self._drawn), "random": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another left off."""
        self._drawn = list(state["drawn"])
        self._random.bit_generator.state = state["random"]

    def _next(self, source: int) -> Example:
        examples = self._sources[source]
        epoch, place = divmod(self._drawn[source], len(examples))
        self._drawn[source] += 1
        return examples[int(self._order(source, epoch)[place])]

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if (source, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != source}
            generator = np.random.default_rng([self._seed, source, epoch])
            self._orders[source, epoch] = generator.permutation(len(self._sources[source]))
        return self._orders[source, epoch]

    def _trimmed(self, example: Example) -> Example:
        most = self._blend.hard_negatives
        if len(example.negatives) <= most:
            return example
        picked = self._random.choice(len(example.negatives), size=most, replace=False)
        return replace(example, negatives=tuple(example.negatives[i] for i in picked))
