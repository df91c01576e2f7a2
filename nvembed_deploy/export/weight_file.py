"""This file owns the bytes of an exported model: transposing, casting, packing, writing.

Tensors pass through one at a time, in the order in which the graph uses them, so that memory does
not grow with the number of layers. The file is a valid safetensors file, and ONNX's external data
at the same time: the graph's initializers refer to its tensors by offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.export.builder import FILE_DTYPES, WeightData, WeightEntry
from nvembed_deploy.export.calibration_record import LinearRange
from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.linear import BASIS
from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.quantized import Quantized, pack_int4
from nvembed_deploy.tensordtype import find_nonfinite
from nvembed_deploy.tensorwriter import SafetensorsWriter

LINEAR, _SCALE = ".weight_t", ".weight_scale"
INPUT_SCALE, OUTPUT_SCALE = ".input_scale", ".output_scale"
_HEADROOM = 4.0
"""How many times the largest output seen fits in FP8: rotation by position gives 1.4 of it, and
texts not seen may have more. E4M3 has 15 binades of full precision; two of them are spent on it."""
_CODES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN)
_TILE = 64
"""Edge of the squares a transposition copies: 4x as fast as numpy's own on 4096-wide float16
(1.18 against 0.29 GB/s, one core of a Xeon with AMX, 2026-11-23)."""


@dataclass(frozen=True)
class WeightFile:
    """A written weight file."""

    data: WeightData
    num_bytes: int
    sha256: str


class Quantizer(Protocol):
    """Rounds linears, in the order in which the graph uses them."""

    @property
    def ranges(self) -> Mapping[str, LinearRange]:
        """Of the inputs of linears: what was seen, or is used again."""
        ...

    def __call__(self, name: str) -> Quantized:
        """Return the quantised weight of the linear `name`."""
        ...

    def range_of(self, name: str) -> LinearRange:
        """Return what was seen of the linear `name`, which may be kept as it is."""
        ...


def write_weights(
    path: Path,
    entries: Sequence[WeightEntry],
    linears: LinearWeights,
    quantizer: Quantizer | None = None,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> WeightFile:
    """Write every entry to `path`, fsynced.

    Args:
        path: the file to write.
        entries: what the graph declares, in its order.
        linears: the checkpoint's tensors.
        quantizer: needed where entries are quantised.
        on_bytes: told the number of bytes after each chunk.

    Raises:
        CheckpointError: a tensor is not finite, or does not fit the precision.
    """
    declared = [(e.name, FILE_DTYPES[e.dtype], e.file_shape) for e in entries]
    metadata = {"format": "nvembed-deploy", "layout": "*.weight_t are linears stored [in, out]"}
    source = _Source(linears, quantizer)
    with SafetensorsWriter(path, declared, metadata) as writer:
        for entry in entries:
            writer.write(entry.name, _counted(source.chunks(entry), on_bytes))
        num_bytes, sha256 = writer.close()
    return WeightFile(WeightData(path, dict(writer.offsets)), num_bytes, sha256)


def _counted(chunks: Iterable[np.ndarray], on_bytes: Callable[[int], None]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield chunk
        on_bytes(chunk.nbytes)


@dataclass
class _Source:
    """Turns entries into arrays: quantised, folded, transposed or as they are."""

    linears: LinearWeights
    quantizer: Quantizer | None
    last: tuple[str, Quantized] | None = None

    def chunks(self, entry: WeightEntry) -> Iterator[np.ndarray]:
        weights = self.linears.weights
        if entry.dtype in _CODES:
            yield self._codes(entry)
        elif entry.name.endswith(_SCALE):
            scale = self._quantized(entry.name.removesuffix(_SCALE)).scale_OG.T
            yield cast(scale.reshape(entry.shape), entry.dtype, entry.name)
        elif entry.name.endswith(INPUT_SCALE):
            scale = np.array(self._quantized(entry.name.removesuffix(INPUT_SCALE)).input_scale)
            yield cast(scale, entry.dtype, entry.name)
        elif entry.name.endswith(OUTPUT_SCALE):
            scale = np.array(self._output_scale(entry.name.removesuffix(OUTPUT_SCALE)))
            yield cast(scale, entry.dtype, entry.name)
        elif entry.name.endswith(BASIS):
            yield cast(self._basis(entry.name.removesuffix(BASIS)), entry.dtype, entry.name)
        elif entry.name.endswith(LINEAR):
            yield self._transposed(entry)
        else:
            for rows in weights.row_blocks(entry.name):
                yield cast(weights.read(entry.name, rows), entry.dtype, entry.name)

    def _output_scale(self, name: str) -> float:
        """Return the scale of what attention reads of a linear; it divides queries by a root."""
        found = None if self.quantizer is None else self.quantizer.range_of(name).output
        if found is None:
            raise ValueError(f"{name} has a range of its output, and none was found")
        root = self.linears.weights.spec.backbone.head_width**0.5
        share = 1 / root if name.endswith("q_proj") else 1.0
        return max(found * share * _HEADROOM / Code.FP8.greatest, float(np.finfo(np.float16).tiny))

    def _basis(self, name: str) -> np.ndarray:
        basis_IK = self._quantized(name).basis_IK
        if basis_IK is None:
            raise ValueError(f"{name} has principal directions, and none were found")
        return basis_IK

    def _codes(self, entry: WeightEntry) -> np.ndarray:
        quantized = self._quantized(entry.name.removesuffix(LINEAR))
        if quantized.codes_OI.shape[::-1] != entry.shape:
            raise ValueError(f"{entry.name} is {entry.shape}: got {quantized.codes_OI.shape[::-1]}")
        turned = np.empty(entry.shape, quantized.codes_OI.dtype)
        transpose_into(turned, quantized.codes_OI)
        return pack_int4(turned) if entry.dtype is ir.DataType.INT4 else turned

    def _quantized(self, name: str) -> Quantized:
        """Return a quantised linear; its two or three tensors are written one after the other."""
        if self.quantizer is None:
            raise ValueError(f"{name} is quantised, and there is no quantizer")
        if self.last is None or self.last[0] != name:
            self.last = (name, self.quantizer(name))
        return self.last[1]

    def _transposed(self, entry: WeightEntry) -> np.ndarray:
        folded = self.linears.folded_transposed(entry.name.removesuffix(LINEAR))
        if folded is not None:
            return cast(folded, entry.dtype, entry.name)
        name, weights = entry.name.removesuffix("_t"), self.linears.weights
        turned = np.empty(entry.shape, entry.dtype.numpy())
        for rows in weights.row_blocks(name):
            transpose_into(turned[:, rows], cast(weights.read(name, rows), entry.dtype, name))
        return turned


def transpose_into(out: np.ndarray, block: np.ndarray) -> None:
    """Copy block.T into `out` [columns, rows], square by square so that caches hold both sides."""
    rows, columns = block.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            out[j : j + _TILE, i : i + _TILE] = block[i : i + _TILE, j : j + _TILE].T


def cast(array: np.ndarray, to: ir.DataType, name: str) -> np.ndarray:
    """Convert to a dtype of floats; no copy where it already has it.

    Raises:
        CheckpointError: a value is outside the range of float16.
    """
    dtype = to.numpy()
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32, copy=False).astype(dtype)
    index = find_nonfinite(narrow)
    if index is not None:
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        raise CheckpointError(
            f"{name}: got {array[index]!r} at {index}, which {to.name.lower()} cannot hold "
            f"(largest {largest:g})",
            "export with --precision bf16 or fp32",
        )
    return narrow
