"""This file owns the exact rotation of a decoder that spreads outlier channels before rounding.

A root-mean-square norm without gain commutes with an orthogonal map of its input. So the token
states can be kept rotated (h R): gains are multiplied into the linears that follow, linears that
read the states are turned back, linears that add to them are turned too. The values of each head
are rotated between v_proj and o_proj in the same way. Only two small products are left for run
time: blocks of 128 features before down_proj, and the way back before the pooler.
Source: arXiv 2404.00456 (QuaRot), section 4; blocks of 128 instead of its full-width products.
Shapes: D hidden, F features of the feed-forward, K head width, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from nvembed_deploy.export.formats import Kernels
from nvembed_deploy.model.names import BACKBONE
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import ModelSpec

UNROTATE = "pooler.unrotate"
_LARGEST_BLOCK = {Kernels.STANDARD: 128, Kernels.CPU: 32}
"""Features rotated together. 128 is a tensor core's bite; on a CPU, where the product is a sixth of
all time, 32 costs a third of it and loses nothing (docs/numerics.md)."""
_READ_STATES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ADD_TO_STATES = ("o_proj", "down_proj")
_COLUMNS = 1024
"""Columns turned at a time: a copy of 16 MiB for a 4096-wide model."""


def hadamard(size: int) -> np.ndarray:
    """Return the orthogonal Sylvester-Hadamard matrix [size, size], float32; size is 2^n."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthogonal: np.ndarray = matrix / np.float32(math.sqrt(size))
    return orthogonal


def power_of_two(width: int) -> int:
    """Return the largest power of two that divides a width."""
    return width & -width


def feature_block(spec: ModelSpec, kernels: Kernels = Kernels.STANDARD) -> int:
    """Return how many features are rotated together before down_proj."""
    return min(_LARGEST_BLOCK[kernels], power_of_two(spec.backbone.intermediate_size))


class Rotation:
    """An orthogonal matrix R [D, D] as random signs times a Kronecker product of two small ones."""

    def __init__(self, width: int, seed: int = 0) -> None:
        """Make the rotation of a width: the same for the same seed."""
        rng = np.random.default_rng(seed)
        binary = power_of_two(width)
        inner = 2 ** math.ceil(math.log2(binary) / 2) if binary == width else binary
        self._signs = rng.choice(np.array([-1, 1], np.float32), width)
        self._inner, outer = hadamard(inner), width // inner
        is_binary = power_of_two(outer) == outer
        self._outer = hadamard(outer) if is_binary else _random_orthogonal(outer, rng)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows @ R for float32 rows [.., D]."""
        blocks = (rows * self._signs).reshape(-1, len(self._outer), len(self._inner))
        turned: np.ndarray = (self._outer.T @ blocks @ self._inner).reshape(rows.shape)
        return turned


def _random_orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    orthogonal, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return orthogonal.astype(np.float32)


class RotatedWeights(Weights):
    """A checkpoint's tensors after the rotation, read like the checkpoint's own; all float32.

    Gains of the decoder's norms are 1; `pooler.unrotate.weight` [D, D] is new: it undoes the
    rotation of the final states and applies the final norm's gain.
    """

    def __init__(
        self, weights: Weights, seed: int = 0, kernels: Kernels = Kernels.STANDARD
    ) -> None:
        """View `weights` through the rotation that belongs to `seed`, in blocks for `kernels`."""
        self.spec = weights.spec
        hidden = weights.spec.backbone.hidden_size
        self.shapes = {**weights.shapes, UNROTATE + ".weight": (hidden, hidden)}
        self._weights = weights
        self._rotate = Rotation(hidden, seed)
        self._head = hadamard(power_of_two(weights.spec.backbone.head_width))
        self.features = hadamard(feature_block(weights.spec, kernels))

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or `rows` of its first axis; see `Weights.read`."""
        if name == UNROTATE + ".weight":
            return self._unrotate()[rows if rows is not None else slice(None)]
        if not name.startswith(BACKBONE):
            return self._weights.read(name, rows)
        kind = name.split(".")[-2]
        if kind == "embed_tokens":
            return self._rotate(self._weights.read_float32(name, rows))
        if kind in _READ_STATES:
            return self._reading(name, rows)
        if kind in _ADD_TO_STATES:
            return self._adding(name)[rows if rows is not None else slice(None)]
        return np.ones_like(self._weights.read_float32(name, rows))

    def row_blocks(self, name: str, block_bytes: int = 32 << 20) -> Iterable[slice]:
        """Cut the first axis; tensors whose rows depend on all rows are one block."""
        if name.split(".")[-2] in _ADD_TO_STATES or name.startswith(UNROTATE):
            return iter([slice(0, self.shapes[name][0])])
        return super().row_blocks(name, block_bytes)

    def _reading(self, name: str, rows: slice | None) -> np.ndarray:
        """Return (W * gain) R, for v_proj with each head's outputs rotated."""
        is_value = name.endswith("v_proj.weight")
        start, stop, _ = (rows or slice(None)).indices(self.shapes[name][0])
        width = self.spec.backbone.head_width if is_value else 1
        whole = slice(start // width * width, -(-stop // width) * width)  # whole heads
        weight_OI = self._weights.read_float32(name, whole) * self._gain(name)
        if is_value:
            by_head = weight_OI.reshape(-1, len(self._head), weight_OI.shape[1])
            weight_OI = (self._head.T @ by_head).reshape(weight_OI.shape)
        return self._rotate(weight_OI[start - whole.start : stop - whole.start])

    def _adding(self, name: str) -> np.ndarray:
        """Return R^T W with its inputs (features, or each head's values) rotated."""
        blocks = self.features if name.endswith("down_proj.weight") else self._head
        weight_OI = self._weights.read_float32(name)
        turned_OI = np.empty_like(weight_OI)
        for start in range(0, weight_OI.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            part = weight_OI[:, columns].reshape(len(weight_OI), -1, len(blocks)) @ blocks
            turned_OI[:, columns] = self._rotate(part.reshape(len(weight_OI), -1).T).T
        return turned_OI

    def _gain(self, name: str) -> np.ndarray:
        layer, _, block = name.removesuffix(".weight").rsplit(".", 2)
        norm = (
            "input_layernorm"
            if block.endswith(("q_proj", "k_proj", "v_proj"))
            else ("post_attention_layernorm")
        )
        return self._weights.read_float32(f"{layer}.{norm}.weight")

    def _unrotate(self) -> np.ndarray:
        gain_D = self._weights.read_float32(BACKBONE + "norm.weight")
        rotation_DD: np.ndarray = self._rotate(np.eye(len(gain_D), dtype=np.float32))
        matrix_DD: np.ndarray = gain_D[:, None] * rotation_DD
        return matrix_DD
