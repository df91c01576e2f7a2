"""This file owns how the packed model gets its weights: a checkpoint's, or an artifact's.

A reader returns one tensor by our names, float32, linears as [out, in]; `pooler.scores` and
`pooler.values` are the folded ones (see `fold.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.model.fold import FoldedAttention, fold_attention
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.tensorfile import TensorEntry

Reader = Callable[[str], np.ndarray]


def checkpoint_reader(weights: Weights) -> Reader:
    """Read a checkpoint's tensors, adapter merged; fold when the pooler is first asked for."""

    @cache
    def folded() -> FoldedAttention:
        return fold_attention(weights)

    def read(name: str) -> np.ndarray:
        if name == "pooler.scores.weight":
            return folded().scores_DX.T
        if name == "pooler.values.weight":
            return folded().values_XD.T
        return weights.read_float32(name)

    return read


def artifact_reader(spec: ModelSpec, entries: Mapping[str, TensorEntry], path: Path) -> Reader:
    """Read the weight file `path` of an artifact; a pooler that is not folded is folded.

    Raises:
        ArtifactError: when a tensor is asked for that is not there.
    """
    stored = {name.removesuffix("_t"): _Stored(path, entry) for name, entry in entries.items()}
    if "pooler.latents" in stored:
        return checkpoint_reader(Weights(spec, stored))

    def read(name: str) -> np.ndarray:
        if name not in stored:
            raise ArtifactError(f"{path} has no tensor for {name}", "export the checkpoint again")
        return stored[name].read().astype(np.float32)

    return read


@dataclass(frozen=True)
class _Stored:
    """A tensor of an artifact as a checkpoint has it: linears are stored as [in, out]."""

    path: Path
    entry: TensorEntry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape[::-1] if self._is_transposed else self.entry.shape

    @property
    def _is_transposed(self) -> bool:
        return self.entry.name.endswith("_t")

    def read(self, rows: slice | None = None) -> np.ndarray:
        array: np.ndarray = self.entry.read()
        array = array.T if self._is_transposed else array
        return array if rows is None else array[rows]
