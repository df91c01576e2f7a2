"""This file owns what goes into `Encoder` and comes out: checked texts, unit rows, tensors.

Legend: N texts, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nvembed_deploy.errors import InputError, MissingPackageError


def texts_of(inputs: object) -> list[str]:
    """Return a list of strings, or say which element is none."""
    if isinstance(inputs, str):
        return [inputs]
    if getattr(inputs, "ndim", None) == 1 and hasattr(inputs, "tolist"):  # numpy's, and pandas'
        inputs = inputs.tolist()
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes | bytearray | memoryview):
        raise InputError(
            f"inputs is a {type(inputs).__name__}, expected a string or a list of strings",
            "pass a list of the texts; for a generator, use encode_stream",
        )
    return list(checked(inputs))


def checked(inputs: Iterable[object]) -> Iterator[str]:
    """Yield each element, which must be a string."""
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise InputError(
                f"inputs[{index}] is a {type(text).__name__}, expected a string",
                "convert or drop this element",
            )
        yield text


def unit_rows(embeddings: ArrayLike) -> NDArray[np.float32]:
    """Scale the rows of [N, D] (or of [D], which is one) to length 1; a row of zeros stays.

    Tensors may be of any device and format, and have gradients.
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    rows_ND = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
    norm_N1 = np.linalg.norm(rows_ND, axis=-1, keepdims=True)
    unit_ND: NDArray[np.float32] = rows_ND / np.maximum(norm_N1, np.finfo(np.float32).tiny)
    return unit_ND


def tensor_of(codes: NDArray[Any]) -> Any:  # noqa: ANN401 - torch is not imported here
    """Return them as a torch tensor.

    Raises:
        MissingPackageError: there is no torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "convert_to_tensor=True needs torch, which is not installed",
            "pip install torch, or take the numpy array",
        ) from error
    return torch.from_numpy(codes)
