"""This file owns the number formats of tensors on disk: their safetensors names, and NaN detection.

It reads and writes no files.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
"""Safetensors' names of the formats that numpy and ml_dtypes can hold; 4-bit data travels as U8."""

_NONFINITE: dict[np.dtype[Any], int] = {
    DTYPES["F8_E4M3"]: 0x7F,  # it has no infinity, and NaN is all ones
    DTYPES["F8_E5M2"]: 0x7C,
    DTYPES["F16"]: 0x7C00,
    DTYPES["BF16"]: 0x7F80,
    DTYPES["F32"]: 0x7F80_0000,
    DTYPES["F64"]: 0x7FF0_0000_0000_0000,
}
"""The bits of positive infinity (of NaN where there is none): no finite value reaches them."""

_BLOCK_BYTES = 1 << 17
"""Small enough that the second pass over a block finds it in the cache."""


def find_nonfinite(array: np.ndarray) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity in C order, or None. Integers have none.

    Nothing is converted: read as integers, the largest signed value shows a positive and the
    largest unsigned one a negative non-finite number.
    """
    limit = _NONFINITE.get(array.dtype)
    if limit is None:
        return None
    width = array.itemsize
    unsigned = np.ascontiguousarray(array).reshape(-1).view(f"u{width}")
    signed = unsigned.view(f"i{width}")
    negative_limit = limit | 1 << (8 * width - 1)
    for start in range(0, unsigned.size, _BLOCK_BYTES // width):
        block = slice(start, start + _BLOCK_BYTES // width)
        if signed[block].max() >= limit or unsigned[block].max() >= negative_limit:
            bad = (signed[block] >= limit) | (unsigned[block] >= negative_limit)
            index = np.unravel_index(start + int(bad.argmax()), array.shape)
            return tuple(int(i) for i in index)
    return None
