"""Tests of FP8 products on GPUs that can do more or less of them, played by the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nvembed_deploy.model.packed import fp8_product
from nvembed_deploy.model.packed.fp8_product import RowScales, row_scales, scaled_product
from nvembed_deploy.model.packed.kernels import FP8, Rounded, to_fp8_rows

HERE = torch.device("cpu")


class TensorCores:
    """torch._scaled_mm as a GPU has it.

    Attributes:
        widest: fewer than 257 rows of more inputs are refused with a scale for each.
        refused: formats that none is given in by rows, and how that is said.
        writes_bfloat16: into a float16 result that has no bias.
    """

    def __init__(self) -> None:
        self.widest, self.calls, self.writes_bfloat16 = 1 << 20, 0, False
        self.refused: dict[torch.dtype, type[Exception]] = {}

    def __call__(
        self,
        left_TI: torch.Tensor,
        right_IO: torch.Tensor,
        *,
        out_dtype: torch.dtype,
        **options: Any,
    ) -> torch.Tensor:
        self.calls += 1
        assert options["use_fast_accum"]
        scale_a, scale_b, bias = options["scale_a"], options["scale_b"], options.get("bias")
        assert left_TI.dtype == right_IO.dtype == FP8
        assert left_TI.is_contiguous()
        assert right_IO.t().is_contiguous()
        is_by_rows = scale_a.numel() > 1
        if is_by_rows and out_dtype in self.refused:
            raise self.refused[out_dtype]("Only bf16 and fp16 high precision output types")
        if is_by_rows and len(left_TI) < 257 and left_TI.shape[1] > self.widest:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")
        product = (left_TI.float() @ right_IO.float()) * scale_a * scale_b
        assert bias is None or (bias.dtype is out_dtype and not bias.any())
        if is_by_rows and self.writes_bfloat16 and out_dtype is torch.float16 and bias is None:
            return product.bfloat16().view(torch.float16)
        return product.to(out_dtype)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorCores]:
    played = TensorCores()
    monkeypatch.setattr(torch, "_scaled_mm", played)
    monkeypatch.setattr(fp8_product, "NO_ROW_SCALES", set())
    row_scales.cache_clear()
    yield played
    row_scales.cache_clear()


def operands(inputs: int = 64) -> tuple[Rounded, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    codes_OI, scale_O1 = to_fp8_rows(torch.randn(32, inputs))
    return to_fp8_rows(30 * torch.randn(7, inputs)), codes_OI, scale_O1[:, 0]


def expected(x: Rounded, codes_OI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    return x.codes.float() @ codes_OI.float().t() * x.scale * scale_O


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.float32])
def test_a_shape_that_takes_no_row_scales_gives_the_same_and_is_asked_once(
    cores: TensorCores, out: torch.dtype
) -> None:
    given = operands(512)
    first = scaled_product(*given, out)
    assert cores.calls == 2  # one of them shows that it can
    cores.widest = 256
    products = [scaled_product(*given, out) for _ in range(2)]
    assert cores.calls == 5
    for product in (first, *products):
        assert product.dtype is out
        torch.testing.assert_close(product, expected(*given).to(out))


def test_a_refused_shape_speaks_for_others_of_about_as_many_tokens(cores: TensorCores) -> None:
    cores.widest = 256
    x, codes_OI, scale_O = operands(512)
    for tokens in (7, 5, 8):
        some = Rounded(x.codes[:1].repeat(tokens, 1), x.scale[:1].repeat(tokens, 1))
        scaled_product(some, codes_OI, scale_O, torch.bfloat16)
    assert len(fp8_product.NO_ROW_SCALES) == 1


def test_bfloat16_in_a_float16_result_is_noticed(cores: TensorCores) -> None:
    cores.writes_bfloat16 = True
    given = operands()
    assert row_scales(HERE, torch.float16) is RowScales.WITH_BIAS
    assert row_scales(HERE, torch.bfloat16) is RowScales.PLAIN
    torch.testing.assert_close(scaled_product(*given, torch.float16), expected(*given).half())


@pytest.mark.parametrize("error", [RuntimeError, ValueError, NotImplementedError])
def test_a_format_that_is_not_given_by_rows_is_given_afterwards(
    cores: TensorCores, error: type[Exception]
) -> None:
    cores.refused = {torch.float32: error}
    given = operands()
    assert row_scales(HERE, torch.float32) is RowScales.NONE
    torch.testing.assert_close(scaled_product(*given, torch.float32), expected(*given))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=["of torch", "of cuBLAS"],
)
def test_no_memory_is_no_refused_shape(
    cores: TensorCores, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    given = operands()
    scaled_product(*given, torch.bfloat16)

    def full(*_: Any, **options: Any) -> torch.Tensor:
        if options["scale_a"].numel() > 1:
            raise error
        return cores(*_, **options)

    monkeypatch.setattr(torch, "_scaled_mm", full)
    run: Callable[[], torch.Tensor] = lambda: scaled_product(*given, torch.bfloat16)  # noqa: E731
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            run()
    else:
        torch.testing.assert_close(run(), expected(*given).bfloat16())
    assert not fp8_product.NO_ROW_SCALES


def test_a_trial_that_had_no_memory_is_made_again(
    cores: TensorCores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_scaled_mm", full)
        with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
            row_scales(HERE, torch.bfloat16)
    assert row_scales(HERE, torch.bfloat16) is RowScales.PLAIN
