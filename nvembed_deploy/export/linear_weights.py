"""This file owns reading the weight of a linear of the graph, wherever it comes from.

Most are tensors of the checkpoint; the folded pooler's two are computed, in the background, while
layers are written. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nvembed_deploy.model.fold import FoldedAttention, fold_attention
from nvembed_deploy.model.weights import Weights

SCORES, VALUES = "pooler.scores", "pooler.values"


@dataclass(frozen=True)
class LinearWeights:
    """The linears of a graph by name; `folded` is None where the pooler is not folded."""

    weights: Weights
    folded: Future[FoldedAttention] | None

    def folded_transposed(self, name: str) -> np.ndarray | None:
        """Return [I, O] float32 of one of the folded pooler's two linears, None for any other."""
        if self.folded is None or name not in (SCORES, VALUES):
            return None
        folded = self.folded.result()
        return folded.scores_DX if name == SCORES else folded.values_XD

    def load(self, name: str) -> np.ndarray:
        """Return weight_OI, float32, of the linear `name` (without `.weight`)."""
        folded_IO = self.folded_transposed(name)
        if folded_IO is not None:
            return np.ascontiguousarray(folded_IO.T)
        return self.weights.read_float32(name + ".weight")


@contextmanager
def open_linears(weights: Weights, *, is_folded: bool) -> Iterator[LinearWeights]:
    """Start folding: the pooler is needed last, and folding costs as much as writing 2 layers."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fold") as pool:
        yield LinearWeights(weights, pool.submit(fold_attention, weights) if is_folded else None)
