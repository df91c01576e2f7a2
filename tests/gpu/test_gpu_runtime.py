"""Tests of the runtimes on an NVIDIA GPU, against float32 on the processor.

Each skips with its reason where the GPU, or the build of torch or ONNX Runtime for it, is missing.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import HardwareError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.runtimes.onnx_runtime import OnnxRuntime, _count_gpus
from nvembed_deploy.spec import Precision
from tests.factories import FUSABLE, write_released

TEXTS = ["the cat sat on the mat", "", "🦀 emoji", "then there was another one " * 30, "a"]
INSTRUCTION = "Given a question, retrieve passages that answer the question"
GPU = "cuda"

MIN_COSINE = {Precision.FP32: 0.99999, Precision.FP16: 0.99999, Precision.BF16: 0.9995}
"""Ten times the loss measured on a processor, 1 - cosine = 1.1e-6 in float16 and 4.0e-5 in
bfloat16 (2026-11-23). Float32 has as much room as float16: CUDA may use TF32, as coarse as that."""


def has_tensorrt() -> bool:
    """Say whether the libraries that ONNX Runtime's TensorRT provider loads can be loaded."""
    for name in ("libnvinfer.so.10", "libnvinfer.so.11", "nvinfer_10.dll", "nvinfer_11.dll"):
        with suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


needs_torch_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason=f"torch {torch.__version__} sees no CUDA device",
)
needs_onnx_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers() or _count_gpus() == 0,
    reason=f"onnxruntime {ort.__version__} has {', '.join(ort.get_available_providers())}; "
    f"the NVIDIA driver shows {_count_gpus()} GPUs",
)
needs_tensorrt = pytest.mark.skipif(
    "TensorrtExecutionProvider" not in ort.get_available_providers()
    or _count_gpus() == 0
    or not has_tensorrt(),
    reason=f"onnxruntime {ort.__version__} has {', '.join(ort.get_available_providers())}; "
    f"the NVIDIA driver shows {_count_gpus()} GPUs; TensorRT's libraries "
    f"{'load' if has_tensorrt() else 'do not load'}",
)


@pytest.fixture(scope="module")
def oracle(tiny_assembled: Path) -> np.ndarray:
    """The checkpoint itself on the processor, float32, faithful pooler."""
    options = RuntimeOptions(device="cpu", dtype=Precision.FP32)
    with load_encoder(tiny_assembled, "torch", options=options) as encoder:
        return encoder.encode(TEXTS, instruction=INSTRUCTION)


def export(checkpoint: Path, out: Path, precision: Precision, opset: int) -> Path:
    run_export(plan_export(checkpoint, ExportRecipe(precision=precision, opset=opset)), out)
    return out


def min_cosine(path: Path, runtime: str, options: RuntimeOptions, oracle: np.ndarray) -> float:
    """Encode on the device, check that it is that device, and compare."""
    assert options.device is not None
    with load_encoder(path, runtime, options=options) as encoder:
        got = encoder.encode(TEXTS, instruction=INSTRUCTION)
        assert encoder.runtime.device.partition(":")[0] == options.device
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    return float((got * oracle).sum(1).min())


@needs_torch_cuda
@pytest.mark.parametrize("precision", list(Precision))
def test_torch_on_the_gpu_equals_the_checkpoint_on_the_processor(
    tiny_assembled: Path, tiny_artifact: Path, oracle: np.ndarray, precision: Precision
) -> None:
    for path in (tiny_assembled, tiny_artifact):
        options = RuntimeOptions(device=GPU, dtype=precision)
        assert min_cosine(path, "torch", options, oracle) >= MIN_COSINE[precision]


@needs_torch_cuda
@pytest.mark.parametrize("precision", list(Precision))
def test_a_replayed_shape_gives_each_batch_its_own_rows(
    tiny_artifact: Path, precision: Precision
) -> None:
    """Three batches of one recorded shape, with texts of other lengths each."""
    batches = [
        ["a b c d e f", "a b", "a b c"],
        ["a", "a b c d e", "b c d"],
        ["d e f", "f e d c", "a b"],
    ]
    plain = RuntimeOptions(device=GPU, dtype=precision, cuda_graphs=0)
    with load_encoder(tiny_artifact, "torch", options=plain) as encoder:
        expected = [encoder.encode(batch) for batch in batches]
    options = RuntimeOptions(device=GPU, dtype=precision)
    with load_encoder(tiny_artifact, "torch", options=options) as encoder:
        for _ in range(3):
            for batch, rows in zip(batches, expected, strict=True):
                np.testing.assert_allclose(encoder.encode(batch), rows, atol=1e-2)
                assert (encoder.encode(batch) * rows).sum(1).min() > 0.999
        assert len(encoder.runtime._recordings) == (precision is not Precision.FP32)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason=f"torch {torch.__version__} sees no GPU of SM 8.9 or later",
)
def test_an_fp8_artifact_on_the_gpu_is_near_its_graph(tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "fp8", write_released(tmp_path / "checkpoint", FUSABLE)
    run_export(plan_export(checkpoint, load_recipe(None, {"precision": "fp8"})), out)
    with load_encoder(out, "torch", device=GPU) as encoder:
        got = encoder.encode(TEXTS, instruction=INSTRUCTION)
    with load_encoder(out, "onnx", device="cpu") as encoder:
        graph = encoder.encode(TEXTS, instruction=INSTRUCTION)
    assert (got * graph).sum(1).min() > 0.995  # 0.998 on a processor: see test_torch_runtime.py


@needs_torch_cuda
@pytest.mark.parametrize("precision", ["fp8", "int8", "int8-weight"])
def test_an_export_calibrated_on_the_gpu_is_as_near(tmp_path: Path, precision: str) -> None:
    checkpoint, rows = write_released(tmp_path / "checkpoint", FUSABLE), []
    for device in ("cpu", GPU):
        recipe = load_recipe(None, {"precision": precision, "device": device})
        run_export(plan_export(checkpoint, recipe), tmp_path / device)
        with load_encoder(tmp_path / device, "onnx", device="cpu") as encoder:
            rows.append(encoder.encode(TEXTS, instruction=INSTRUCTION))
    with load_encoder(checkpoint, "torch", device="cpu") as encoder:
        exact = encoder.encode(TEXTS, instruction=INSTRUCTION)
    here, there = (1 - (row * exact).sum(1) for row in rows)
    assert there.mean() < 1.5 * here.mean()


@needs_torch_cuda
def test_compiled_kernels_give_the_rows_of_plain_ones(tiny_artifact: Path) -> None:
    rows = []
    for compiles in (False, True):
        options = RuntimeOptions(device=GPU, dtype=Precision.BF16, compiles=compiles)
        with load_encoder(tiny_artifact, "torch", options=options) as encoder:
            rows.append(encoder.encode(TEXTS, instruction=INSTRUCTION))
    assert (rows[0] * rows[1]).sum(1).min() > MIN_COSINE[Precision.BF16]


@pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, of two",
)
def test_each_of_two_gpus_records_its_own_shapes(tiny_artifact: Path, oracle: np.ndarray) -> None:
    options = RuntimeOptions(device="cuda:0,cuda:1", dtype=Precision.FP16)
    with load_encoder(tiny_artifact, "torch", options=options) as encoder:
        for _ in range(8):  # one batch each: enough for both to record and to replay
            rows = [encoder.encode([text], instruction=INSTRUCTION)[0] for text in TEXTS]
    cosines = (np.stack(rows) * oracle).sum(1)
    assert cosines.min() >= MIN_COSINE[Precision.FP16]


@needs_torch_cuda
def test_closing_torch_gives_the_gpu_its_memory_back(tiny_artifact: Path) -> None:
    with load_encoder(tiny_artifact, "torch", device=GPU) as encoder:
        encoder.encode(TEXTS)  # cuBLAS keeps a workspace from its first product on
    before = torch.cuda.memory_allocated()
    encoder = load_encoder(tiny_artifact, "torch", device=GPU)
    encoder.encode(TEXTS)
    assert torch.cuda.memory_allocated() > before
    encoder.close()
    assert torch.cuda.memory_allocated() == before


@needs_onnx_cuda
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_onnx_runtime_on_the_gpu_equals_the_checkpoint_on_the_processor(
    tmp_path: Path, tiny_assembled: Path, oracle: np.ndarray, precision: Precision, opset: int
) -> None:
    path = export(tiny_assembled, tmp_path / "out", precision, opset)
    got = min_cosine(path, "onnx", RuntimeOptions(device=GPU), oracle)
    assert got >= MIN_COSINE[precision]


@needs_onnx_cuda
def test_a_gpu_is_taken_where_there_is_one(tiny_artifact: Path) -> None:
    with load_encoder(tiny_artifact, "onnx") as encoder:
        assert encoder.runtime.device == "cuda:0"


@needs_onnx_cuda
def test_a_gpu_that_is_not_there_is_refused(tiny_artifact: Path) -> None:
    with pytest.raises(HardwareError, match="the NVIDIA driver shows"):
        load_encoder(tiny_artifact, "onnx", device=f"cuda:{_count_gpus()}")


@needs_tensorrt
def test_tensorrt_is_used_and_equals_the_checkpoint_on_the_processor(
    tmp_path: Path, tiny_assembled: Path, oracle: np.ndarray
) -> None:
    path = export(tiny_assembled, tmp_path / "out", Precision.FP32, opset=20)
    with load_encoder(path, "onnx", device="tensorrt") as encoder:
        assert isinstance(encoder.runtime, OnnxRuntime)
        assert encoder.runtime._session is not None
        assert encoder.runtime._session.get_providers()[0] == "TensorrtExecutionProvider"
    got = min_cosine(path, "onnx", RuntimeOptions(device="tensorrt"), oracle)
    assert got >= MIN_COSINE[Precision.FP32]
