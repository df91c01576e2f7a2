"""Tests of engines on an NVIDIA GPU: compiled there, run there, against float32 on the processor.

Each skips with its reason where the GPU, the product or CUDA's bindings are missing.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import ArtifactError, InputError
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.runtimes.cuda_memory import Gpu, load_cudart
from nvembed_deploy.tensorrt_api import MODULES, gpu_name, gpu_target, load_api
from nvembed_deploy.text import Batch, Tokens, collate
from tests.factories import FUSABLE, write_released

TEXTS = ["the cat sat on the mat", "", "🦀 emoji", "then there was another one " * 30, "a"]
INSTRUCTION = "Given a question, retrieve passages that answer the question"
MIN_COSINE = {"fp16": 0.9999, "bf16": 0.999, "fp8": 0.99, "int8": 0.99}
"""Of a random model of two layers, whose rows are less alike than a trained one's. For sixteen bits
ten times what a processor loses (docs/numerics.md); for eight bits a wrong scale would be far
below."""


def reason_to_skip(flavour: Flavour) -> str | None:
    """Say what is missing for a flavour."""
    target = gpu_target()
    if target is None:
        return "the NVIDIA driver shows no GPU"
    for module in (MODULES[flavour], "cuda"):
        if find_spec(module) is None:
            return f"{module} is not installed: pip install 'nvembed-deploy[{flavour}]'"
    supported = load_api(flavour).targets
    if supported and target not in supported:
        return f"{flavour} does not run on {target}"
    return None


FLAVOURS = [
    pytest.param(f, marks=pytest.mark.skipif(bool(why := reason_to_skip(f)), reason=why or ""))
    for f in Flavour
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("tensorrt") / "checkpoint", FUSABLE)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> np.ndarray:
    """The checkpoint itself on the processor, float32, faithful pooler."""
    with load_encoder(checkpoint, "torch", device="cpu") as encoder:
        return encoder.encode(TEXTS, instruction=INSTRUCTION)


def export(checkpoint: Path, out: Path, *words: str) -> Path:
    assert main(["export", str(checkpoint), str(out), *words]) == 0
    return out


@pytest.fixture(scope="module", params=FLAVOURS)
def compiled(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Flavour]:
    """A fp16 artifact with an engine for this GPU, and its flavour."""
    path = export(checkpoint, tmp_path_factory.mktemp(request.param.value) / "artifact")
    target = ["--target", str(gpu_target())] if request.param is Flavour.RTX else []
    assert main(["compile", str(path), "--engine", request.param.value, *target]) == 0
    return path, request.param


def batch_of(*lengths: int) -> Batch:
    generator = np.random.default_rng(sum(lengths))
    tokens = [Tokens(generator.integers(3, 300, n), num_masked=min(2, n - 1)) for n in lengths]
    return collate(tokens, pad_id=2)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("precision", MIN_COSINE)
def test_an_engine_equals_the_checkpoint_on_the_processor(
    checkpoint: Path, oracle: np.ndarray, tmp_path: Path, precision: str, flavour: Flavour
) -> None:
    path = export(checkpoint, tmp_path / "out", "--precision", precision)
    with load_encoder(path, flavour.value) as encoder:  # compiles
        got = encoder.encode(TEXTS, instruction=INSTRUCTION)
        assert encoder.runtime.name == flavour.value
    assert (got * oracle).sum(1).min() >= MIN_COSINE[precision]
    assert len(read_manifest(path).engines) == 1


def test_a_replayed_shape_gives_the_rows_of_the_first_run(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    with load_encoder(path, flavour.value) as encoder:
        batches = [batch_of(7), batch_of(30, 12), batch_of(200), batch_of(*[64] * 20)]
        first = [encoder.runtime.embed(batch) for batch in batches]
        for _ in range(4):
            for batch, expected in zip(batches, first, strict=True):
                np.testing.assert_allclose(encoder.runtime.embed(batch), expected, atol=2e-3)


def test_recording_or_not_makes_no_difference(compiled: tuple[Path, Flavour]) -> None:
    """Two graphs for three shapes: each gives way to another."""
    path, flavour = compiled
    rows = []
    for cuda_graphs in (0, 2):
        options = RuntimeOptions(cuda_graphs=cuda_graphs)
        with load_encoder(path, flavour.value, options=options) as encoder:
            rows.append([encoder.runtime.embed(batch_of(n)) for n in (5, 40, 90) * 3])
    np.testing.assert_allclose(*map(np.concatenate, rows), atol=2e-3)


def test_an_engine_says_which_gpu_it_was_tuned_on(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    (record,) = read_manifest(path).engines.values()
    assert record.gpu == (gpu_name() if flavour is Flavour.TENSORRT else None)
    gpu = Gpu(0)
    assert gpu.name == gpu_name()  # of CUDA's two libraries; engines are chosen by it
    gpu.close()


def test_contexts_have_scratch_memory_to_share(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    with load_encoder(path, flavour.value) as encoder:
        runtime: Any = encoder.runtime
        assert runtime._engine.scratch_bytes > 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_float32_is_computed_in_float32(
    checkpoint: Path, oracle: np.ndarray, tmp_path: Path, flavour: Flavour
) -> None:
    """TF32 would round to 2**-11 of each operand; float32 itself rounds to 2**-24."""
    path = export(checkpoint, tmp_path / "out", "--precision", "fp32", "--opset", "20")
    with load_encoder(path, flavour.value) as encoder:
        got = encoder.encode(TEXTS, instruction=INSTRUCTION)
    np.testing.assert_allclose(got, oracle, atol=2e-5)


def test_padding_and_batch_mates_do_not_change_a_row(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    with load_encoder(path, flavour.value) as encoder:
        alone = encoder.encode([TEXTS[0]])
        together = encoder.encode(TEXTS * 5)
    assert ((alone * together[::5]).sum(1) >= MIN_COSINE["fp16"]).all()


def test_auto_takes_the_engine(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    with load_encoder(path) as encoder:
        assert (encoder.runtime.name, encoder.runtime.device) == (flavour.value, "cuda:0")


def test_closing_gives_the_gpu_its_memory_back(compiled: tuple[Path, Flavour]) -> None:
    path, flavour = compiled
    load_encoder(path, flavour.value).close()  # the driver keeps its own for the process

    def free() -> int:
        return int(load_cudart().cudaMemGetInfo()[1])

    before = free()
    for _ in range(3):
        with load_encoder(path, flavour.value) as encoder:
            for n in (5, 5, 40, 40, 5, 40):
                encoder.runtime.embed(batch_of(n))
    assert before - free() < 32 << 20


def test_torch_tensors_on_the_gpu_are_taken_where_they_lie(compiled: tuple[Path, Flavour]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    path, flavour = compiled
    batch = batch_of(30, 20)
    arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
    with load_encoder(path, flavour.value) as encoder:
        runtime: Any = encoder.runtime
        rows = runtime.embed_on_gpu(*(torch.from_numpy(a).cuda() for a in arrays))
        got = torch.as_tensor(rows, device="cuda").cpu().numpy()
        np.testing.assert_allclose(got, runtime.embed(batch), atol=2e-3)


def test_torch_tensors_on_another_gpu_are_refused(compiled: tuple[Path, Flavour]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip(f"torch sees {torch.cuda.device_count()} CUDA devices, the test takes 2")
    path, flavour = compiled
    batch = batch_of(30, 20)
    arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
    with load_encoder(path, flavour.value, device="cuda:0") as encoder:
        runtime: Any = encoder.runtime
        with pytest.raises(InputError, match="lies in the memory of cuda:1"):
            runtime.embed_on_gpu(*(torch.from_numpy(a).to("cuda:1") for a in arrays))
        assert runtime.embed(batch).shape[0] == len(batch.input_ids_BS)


def test_torchs_own_gpu_is_what_it_was(compiled: tuple[Path, Flavour]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip(f"torch sees {torch.cuda.device_count()} CUDA devices, the test takes 2")
    path, flavour = compiled
    options = RuntimeOptions(device="cuda:1")
    with load_encoder(path, flavour.value, options=options) as encoder:
        encoder.runtime.embed(batch_of(5))
        assert torch.zeros(1, device="cuda").device.index == 0
    assert torch.zeros(1, device="cuda").device.index == 0


def test_torch_tensors_of_the_processor_are_refused(compiled: tuple[Path, Flavour]) -> None:
    torch = pytest.importorskip("torch")
    path, flavour = compiled
    with load_encoder(path, flavour.value) as encoder:
        runtime: Any = encoder.runtime
        with pytest.raises(InputError, match="expected an array on the GPU"):
            runtime.embed_on_gpu(*[torch.zeros((1, 4), dtype=torch.int64)] * 3)


def test_a_damaged_plan_is_refused_with_its_hash(
    compiled: tuple[Path, Flavour], tmp_path: Path
) -> None:
    path, flavour = compiled
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    (name,) = read_manifest(copy).engines
    plan = copy / name
    data = bytearray(plan.read_bytes())
    data[: 1 << 10] = bytes(1 << 10)
    plan.write_bytes(data)
    options = RuntimeOptions(compiles_engines=False)
    with pytest.raises(ArtifactError, match="is damaged: got sha256") as caught:
        load_encoder(copy, flavour.value, options=options)
    assert "nvembed-deploy compile" in caught.value.fix


def test_an_engine_of_another_version_is_compiled_anew(
    compiled: tuple[Path, Flavour], tmp_path: Path
) -> None:
    path, flavour = compiled
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    text = (copy / "manifest.json").read_text()
    version = load_api(flavour).version
    (copy / "manifest.json").write_text(text.replace(f'"{version}"', '"1.0.0"'))
    with load_encoder(copy, flavour.value) as encoder:
        encoder.encode(TEXTS)
    assert version in {record.version for record in read_manifest(copy).engines.values()}
    open_artifact(copy, "full")


@pytest.mark.parametrize("flavour", FLAVOURS[:1])
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_stripped_plan_takes_its_weights_from_the_graph(
    checkpoint: Path, oracle: np.ndarray, tmp_path: Path, precision: str, flavour: Flavour
) -> None:
    """In fp8 TensorRT may fold weights into kernels, where it cannot put them back."""
    path = export(checkpoint, tmp_path / "out", "--precision", precision)
    assert main(["compile", str(path), "--engine", flavour.value, "--strip-weights"]) == 0
    (name,) = read_manifest(path).engines
    assert (path / name).stat().st_size < (path / "model.onnx_data").stat().st_size
    with load_encoder(path, flavour.value) as encoder:
        got = encoder.encode(TEXTS, instruction=INSTRUCTION)
    assert (got * oracle).sum(1).min() >= MIN_COSINE[precision]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_onnx_runtimes_provider_gives_the_same_rows(
    checkpoint: Path, oracle: np.ndarray, tmp_path: Path, flavour: Flavour
) -> None:
    ort = pytest.importorskip("onnxruntime")
    plugin = find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if flavour is Flavour.RTX and plugin is None:
        pytest.skip("pip install 'nvembed-deploy[onnx-tensorrt-rtx]'")
    if flavour is Flavour.TENSORRT and "TensorrtExecutionProvider" not in (
        available := ort.get_available_providers()
    ):
        pytest.skip(f"onnxruntime {ort.__version__} has {', '.join(available)}")
    path, context = export(checkpoint, tmp_path / "out"), tmp_path / "model_ctx.onnx"
    options = RuntimeOptions(device=flavour.value, context_file=str(context))
    for _ in range(2):  # written, then read
        with load_encoder(path, "onnx", options=options) as encoder:
            got = encoder.encode(TEXTS * 3, instruction=INSTRUCTION)
            assert encoder.runtime.device == f"{flavour.value}:0"
        assert (got * np.tile(oracle, (3, 1))).sum(1).min() >= MIN_COSINE["fp16"]
        assert context.is_file()
