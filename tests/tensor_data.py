"""This file owns the arrays that the tests of tensors on disk write, and how they are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nvembed_deploy.tensordtype import DTYPES
from nvembed_deploy.tensorwriter import SafetensorsWriter


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bit pattern: files must carry NaN and -0 as they are."""
    target = DTYPES[dtype]
    count = int(np.prod(shape, dtype=np.int64)) * target.itemsize
    high = 2 if dtype == "BOOL" else 256
    data = np.random.default_rng(seed).integers(0, high, count, np.uint8)
    return data.view(target).reshape(shape)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def write(path: Path, tensors: dict[str, np.ndarray], **options: int) -> tuple[int, str]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = [(name, names[a.dtype], a.shape) for name, a in tensors.items()]
    with SafetensorsWriter(path, entries, {"made": "by test"}, **options) as writer:
        for name, array in tensors.items():
            writer.write(name, np.array_split(array, 3) if array.ndim else [array])
        return writer.close()
