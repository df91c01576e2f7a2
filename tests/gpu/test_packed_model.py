"""Tests of the packed model's kernels on an NVIDIA GPU, against float32 on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.random_model import TINY, RandomModel
from nvembed_deploy.model.packed.fp8_product import _by_rows_afterwards, scaled_product
from nvembed_deploy.model.packed.kernels import Kernels, to_fp8_rows
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.reader import checkpoint_reader
from nvembed_deploy.runtimes.packed_runtime import PackedRuntime
from nvembed_deploy.spec import Pooling
from nvembed_deploy.text import Batch

if not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} sees no CUDA device", allow_module_level=True)

GPU = torch.device("cuda")
LENGTHS = ([2], [17], [3, 40, 9], [600, 2], [100] * 40)
"""Alone and together, in recorded shapes and in one that is too large for them."""
needs_fp8 = pytest.mark.skipif(
    torch.cuda.get_device_capability() < (8, 9), reason="FP8 begins with SM 8.9"
)


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    yield
    torch.cuda.empty_cache()


def on_processor(model: RandomModel) -> PackedRuntime:
    read = checkpoint_reader(model.weights)
    loader = Loader(read, torch.float32, torch.device("cpu"), Kernels())
    return PackedRuntime.load(model.spec, loader, 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_every_pooling_gives_the_processors_rows(pooling: Pooling, causal: bool) -> None:
    spec = replace(
        TINY,
        pooler=replace(TINY.pooler, pooling=pooling),
        backbone=replace(TINY.backbone, causal=causal),
    )
    exact, ours = on_processor(RandomModel(spec, GPU)), RandomModel(spec, GPU).packed("bf16")
    for batch in map(RandomModel(spec, GPU).batch, LENGTHS):
        expected = exact.embed(batch)
        for _ in range(4):  # as it is, recorded, replayed
            assert (ours.embed(batch) * expected).sum(1).min() > 0.999  # 0.99975 on a processor


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("num_pooled", [0, 1])
def test_a_text_of_which_nothing_is_pooled_gives_zeros(pooling: Pooling, num_pooled: int) -> None:
    """The kernel takes texts with one query each in a way of its own."""
    spec = replace(TINY, pooler=replace(TINY.pooler, pooling=pooling))
    batch = RandomModel(spec, GPU).batch([5, 9, 5])
    pool_mask_BS = np.zeros_like(batch.pool_mask_BS)
    pool_mask_BS[1, 7 : 7 + num_pooled] = 1
    batch = Batch(batch.input_ids_BS, batch.attention_mask_BS, pool_mask_BS)
    rows = RandomModel(spec, GPU).packed("bf16").embed(batch)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [0, num_pooled, 0], atol=1e-3)


@needs_fp8
@pytest.mark.parametrize("side", ["packed, fp8", "packed, fp8 artifact"])
def test_compiled_kernels_round_to_fp8_as_plain_ones(side: str) -> None:
    model = RandomModel(TINY, GPU)
    plain, compiled = model.packed(side), model.packed(f"{side}, compiled")
    for batch in map(model.batch, LENGTHS):
        for _ in range(3):
            assert (plain.embed(batch) * compiled.embed(batch)).sum(1).min() > 0.99


@needs_fp8
@pytest.mark.parametrize("num_inputs", [4096, 14336, 14432])
@pytest.mark.parametrize("num_tokens", [1, 16, 1000])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16])
def test_fast_accumulation_loses_little_beside_rounding(
    num_inputs: int, num_tokens: int, out: torch.dtype
) -> None:
    """Tensor cores of SM 9.0 add FP8 products in fewer bits than float32 has."""
    torch.manual_seed(0)
    x_TI = torch.randn(num_tokens, num_inputs, device=GPU)
    weight_OI = torch.randn(4096, num_inputs, device=GPU)
    x, (codes_OI, scale_O1) = to_fp8_rows(x_TI), to_fp8_rows(weight_OI)
    rounded_TO = (x.codes.float() @ codes_OI.float().t()) * x.scale * scale_O1[:, 0]
    lost_by_rounding = (rounded_TO - x_TI @ weight_OI.t()).norm()
    for product in (scaled_product, _by_rows_afterwards):
        got_TO = product(x, codes_OI, scale_O1[:, 0], out)
        assert (got_TO.float() - rounded_TO).norm() < 0.25 * lost_by_rounding
