"""This file owns the speed limit of this machine now: the model's largest product, nothing else.

It is measured again in each round, between the sides, so that a neighbour's load slows both.
Legend: T tokens, D hidden, F feed-forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import numpy as np

TOKENS = 512
"""Rows of the product: enough that more are no faster per row on a processor or a GPU."""
_LEAST_SECONDS = 0.3
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def measure_ceiling(
    hidden: int, feed: int, dtypes: Iterable[str], device: str = "cpu"
) -> dict[str, float]:
    """Return FLOP/s of [T, D] x [D, F] by number format; the best of repeated products.

    torch's, or on a processor numpy's in float32 where torch is not installed. A format that
    neither has is left out, and so is float16 on a processor, which computes it in float32; of a
    GPU all are where there is no torch that sees it.

    Args:
        hidden: D.
        feed: F.
        dtypes: number formats by our names.
        device: "cpu"; or "cuda:1", "tensorrt:1", ...: the GPU of this number.
    """
    if device != "cpu" and not _torch_sees_gpu():
        return {}
    if find_spec("torch") is None:
        return {"fp32": _rate(_numpy_product(hidden, feed), hidden * feed)}
    is_cpu = device == "cpu"
    place = "cpu" if is_cpu else f"cuda:{device.partition(':')[2] or 0}"
    known = [n for n in dtypes if n in _TORCH_NAMES and not (is_cpu and n == "fp16")]
    return {n: _rate(_torch_product(hidden, feed, n, place), hidden * feed) for n in known}


def _torch_sees_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _rate(product: Callable[[], None], weights: int) -> float:
    product()
    best, ends = float("inf"), time.perf_counter() + _LEAST_SECONDS
    while best == float("inf") or time.perf_counter() < ends:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * TOKENS * weights / best


def _torch_product(hidden: int, feed: int, dtype: str, device: str) -> Callable[[], None]:
    import torch

    kind = getattr(torch, _TORCH_NAMES[dtype])
    states_TD = torch.randn(TOKENS, hidden, device=device).to(kind)
    weight_FD = torch.randn(feed, hidden, device=device).to(kind)

    def product() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(states_TD, weight_FD)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return product


def _numpy_product(hidden: int, feed: int) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    states_TD = rng.standard_normal((TOKENS, hidden), np.float32)
    weight_DF = rng.standard_normal((hidden, feed), np.float32)
    out_TF = np.empty((TOKENS, feed), np.float32)

    def product() -> None:
        np.matmul(states_TD, weight_DF, out=out_TF)

    return product
