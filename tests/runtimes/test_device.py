"""Tests of the torch runtimes on another device: what they compute with is all there.

The second device is `tests/far_device.py`'s, with the few products that only GPUs have played by
the processor. Replayed batches are filled up, which may change the order of sums: rows are near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from nvembed_deploy import load_encoder
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.model.packed import attention
from nvembed_deploy.model.packed.batch import PackedBatch
from nvembed_deploy.model.packed.fp8_product import row_scales
from nvembed_deploy.model.packed.model import PackedModel
from nvembed_deploy.runtimes import RuntimeOptions, packed_runtime, torch_runtime
from nvembed_deploy.spec import Precision
from tests.far_device import FarTensor, far_device
from tests.model.packed.test_fp8_product import TensorCores

TEXTS = ["a cat", "", "then there was another one " * 20, "🦀"]
CASES: dict[str, tuple[Precision, list[str]]] = {
    "float16": (Precision.FP16, []),
    "bfloat16": (Precision.BF16, []),
    "float16, some kept": (Precision.FP16, ["*.k_proj"]),
    "bfloat16, some kept": (Precision.BF16, ["*.k_proj"]),
}


def flash(*inputs: Any, **_: Any) -> tuple[torch.Tensor, ...]:
    """Play torch's variable-length attention: texts' boundaries are tensors of the device."""
    query_RHK, key_TGK, value_TGK, query_cuts, key_cuts, *_ = inputs
    assert {type(x) for x in inputs[:5]} == {FarTensor}
    mixed_RHK = torch.zeros_like(query_RHK)
    for text in range(len(query_cuts) - 1):
        rows, tokens = (slice(*cuts[text : text + 2].tolist()) for cuts in (query_cuts, key_cuts))
        if rows.start == rows.stop:
            continue
        parts = (query_RHK[rows], key_TGK[tokens], value_TGK[tokens])
        mixed = functional.scaled_dot_product_attention(
            *(part.transpose(0, 1)[None] for part in parts), enable_gqa=True
        )
        mixed_RHK[rows] = mixed[0].transpose(0, 1)
    return (mixed_RHK,)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PackedBatch]]:
    """Play a GPU of SM 9.0; return the batches whose shapes it records."""
    batches: list[PackedBatch] = []

    def record(_: object, model: PackedModel, batch: PackedBatch) -> Callable[[], torch.Tensor]:
        batches.append(batch)
        return lambda: model(batch)

    def clear() -> None:
        row_scales.cache_clear()
        attention._capability.cache_clear()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    monkeypatch.setattr(torch, "_scaled_mm", TensorCores())
    monkeypatch.setattr(packed_runtime.CudaGraphs, "record", record)
    clear()
    yield batches
    clear()


def embed(path: Path, runtime: str, **options: Any) -> np.ndarray:
    with load_encoder(path, runtime, options=RuntimeOptions(**options)) as encoder:
        whole = encoder.encode(TEXTS, instruction="Find the animal")
        # The second batch of a shape has it recorded, the third is replayed.
        return np.stack([*whole, *(encoder.encode([text])[0] for text in ("a", "b", "c"))])


@pytest.mark.parametrize("dtype", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("runtime", ["torch", "reference"])
def test_a_checkpoint_gives_the_same_rows_there(
    tiny_checkpoint: Path, recorded: list[PackedBatch], runtime: str, dtype: Precision
) -> None:
    here = embed(tiny_checkpoint, runtime, device="cpu", dtype=dtype)
    with far_device():
        there = embed(tiny_checkpoint, runtime, device="cuda", dtype=dtype)
    is_replayed = runtime == "torch" and dtype is not Precision.FP32
    assert len(recorded) == is_replayed
    assert all(isinstance(x, FarTensor) for batch in recorded for x in batch.tensors())
    assert (there * here).sum(1).min() > 0.9999  # measured 1 - 1e-7


@pytest.mark.parametrize("case", CASES)
def test_an_fp8_artifact_gives_the_same_rows_there(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: list[PackedBatch],
    case: str,
) -> None:
    dtype, keep = CASES[case]
    values = {"precision": "fp8", "rounding": "nearest", "keep": keep, "calibration_texts": 8}
    run_export(plan_export(tiny_checkpoint, load_recipe(None, values)), tmp_path / "out")
    with far_device():
        there = embed(tmp_path / "out", "torch", device="cuda", dtype=dtype)
    assert len(recorded) == 1
    monkeypatch.setattr(torch_runtime, "check_fp8", lambda *_: None)
    here = embed(tmp_path / "out", "torch", device="cpu", dtype=dtype)
    assert (there * here).sum(1).min() > 0.99  # measured 1 - 1e-7; a step of E4M3 costs 2e-3
