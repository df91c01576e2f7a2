"""This file owns how the packed model gets its weights: a checkpoint's, or an artifact's.

A reader returns one tensor by our names, float32, linears as [out, in]; `pooler.scores` and
`pooler.values` are the folded ones (see `fold.py`). Linears that an artifact stores in FP8 can also
be had as they are. Shapes: O outputs, I inputs.
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
_SCALE, _FP8 = ".weight_scale", "F8_E4M3"
_BASIS = ".basis"
_NOT_COMPUTED = (".input_scale", ".output_scale", "pooler.unrotate.weight_t")
"""Ends of names that only graphs have which the packed model does not compute: static ranges,
attention in FP8, and rotated states."""


@dataclass(frozen=True)
class Codes:
    """A linear in E4M3: codes_IO as bytes, and float32 scale_O.

    The basis is stored with the first linear that reads an input of which some directions have
    codes of their own (see `export/principal.py`).
    """

    codes_IO: np.ndarray
    scale_O: np.ndarray
    basis_IK: np.ndarray | None = None


CodesReader = Callable[[str], Codes | None]
"""Returns a linear as it is stored in FP8; None where it is not."""


def no_codes(_name: str) -> None:
    """Say that no linear is stored in FP8; see `CodesReader`."""


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


def codes_reader(entries: Mapping[str, TensorEntry]) -> CodesReader:
    """Read the linears of an artifact that are stored in FP8."""

    def read(name: str) -> Codes | None:
        entry, scale = entries.get(name + ".weight_t"), entries.get(name + _SCALE)
        if entry is None or scale is None or entry.dtype != _FP8:
            return None
        basis = entries.get(name + _BASIS)
        return Codes(
            entry.read().view(np.uint8),
            scale.read().astype(np.float32),
            None if basis is None else basis.read(),
        )

    return read


def uncomputed(entries: Mapping[str, TensorEntry]) -> str | None:
    """Return a tensor of an artifact that the packed model cannot compute with, if there is one."""
    for name, entry in entries.items():
        is_coded = _scale_of(name) in entries and entry.dtype != _FP8
        if is_coded or name.endswith(_NOT_COMPUTED):
            return name
    return None


def _scale_of(name: str) -> str:
    return name.removesuffix(".weight_t") + _SCALE


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
