"""This file owns the output formats of embeddings: float32, int8, uint8, binary and ubinary.

The codes are sentence-transformers' (`quantize_embeddings`, 6.2), so that an index built with one
serves the other. It concerns the vectors a user stores, never the precision of the graph.
Legend: N texts, D hidden.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
# Under this many rows the range of a dimension is mostly chance (sentence-transformers' bound).
MIN_RANGE_ROWS = 100

logger = logging.getLogger(__name__)


def check_precision(precision: str) -> None:
    """Refuse an unknown output format.

    Raises:
        InputError: `precision` is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}",
            "use float32 unless the vectors must be small",
        )


def quantize_embeddings(
    embeddings_ND: NDArray[np.floating[Any]],
    precision: str,
    *,
    ranges: NDArray[np.floating[Any]] | None = None,
) -> NDArray[Any]:
    """Store embeddings in fewer bits.

    int8 and uint8 cut the range of each dimension into 255 steps, code = floor((x - low) / step),
    int8 shifted by -128; values outside the range get its nearest end. binary and ubinary keep the
    sign, 8 dimensions per byte, first dimension in the highest bit, binary shifted by -128.
    Source: sentence-transformers 6.2, util/quantization.py.

    Args:
        embeddings_ND: float embeddings, [N, D], or one, [D].
        precision: one of `PRECISIONS`.
        ranges: lowest and highest value of each dimension, [2, D]. One index needs one set of
            ranges for everything in it; without it the embeddings' own are used.

    Returns:
        float32, int8 or uint8 [N, D]; int8 or uint8 [N, ceil(D / 8)] for the binary ones. Without
        N for one embedding.

    Raises:
        InputError: unknown precision, embeddings that are codes already or of another rank, ranges
            of another shape or order or that are not finite, or none for a single row.
    """
    check_precision(precision)
    embeddings_ND = np.asarray(embeddings_ND)
    if not np.issubdtype(embeddings_ND.dtype, np.floating):
        raise InputError(
            f"the embeddings are {embeddings_ND.dtype}, expected floats",
            "quantise the float32 embeddings, once",
        )
    if embeddings_ND.ndim not in {1, 2}:
        raise InputError(
            f"the embeddings have shape {embeddings_ND.shape}, expected [N, D] or [D]",
            "give what encode returns",
        )
    if precision == "float32":
        return embeddings_ND.astype(np.float32, copy=False)
    if precision in ("binary", "ubinary"):
        codes = np.packbits(embeddings_ND > 0, axis=-1)
    else:
        codes = _bucket_codes(embeddings_ND, ranges)
    return codes if precision.startswith("u") else (codes.astype(np.int16) - 128).astype(np.int8)


def _bucket_codes(
    embeddings_ND: NDArray[np.floating[Any]], ranges: NDArray[np.floating[Any]] | None
) -> NDArray[np.uint8]:
    if embeddings_ND.size == 0:
        return np.zeros(embeddings_ND.shape, dtype=np.uint8)
    low_D, high_D = _ranges(embeddings_ND, ranges)
    step_D = (high_D - low_D) / 255
    step_D = np.where(step_D == 0, 1, step_D)
    codes_ND = np.floor((embeddings_ND - low_D) / step_D)
    codes: NDArray[np.uint8] = np.clip(codes_ND, 0, 255).astype(np.uint8)
    return codes


def _ranges(
    embeddings_ND: NDArray[np.floating[Any]], ranges: NDArray[np.floating[Any]] | None
) -> NDArray[np.float32]:
    num_rows, width = np.atleast_2d(embeddings_ND).shape
    if ranges is None:
        if num_rows == 1:
            raise InputError(
                "int8 and uint8 need the range of each dimension, which one embedding does not "
                "have",
                "encode in float32 and call quantize_embeddings with ranges from your corpus",
            )
        if num_rows < MIN_RANGE_ROWS:
            logger.warning(
                "int8 ranges come from %d embeddings: give ranges from %d or more",
                num_rows,
                MIN_RANGE_ROWS,
            )
        ranges = np.stack([embeddings_ND.min(axis=0), embeddings_ND.max(axis=0)])
    ranges = np.asarray(ranges, dtype=np.float32)
    if ranges.shape != (2, width):
        raise InputError(
            f"ranges has shape {ranges.shape}, expected (2, {width})",
            "stack the lowest and the highest value of each dimension",
        )
    wrong_D = np.flatnonzero(~(ranges[0] <= ranges[1]) | ~np.isfinite(ranges).all(axis=0))
    if len(wrong_D):
        low, high = ranges[:, wrong_D[0]]
        raise InputError(
            f"the range of dimension {wrong_D[0]} is from {low} to {high} ({len(wrong_D)} such)",
            "give the lowest value first, and the highest, of embeddings that are finite",
        )
    return ranges
