"""Tests of tensorrt_runtime.py: an engine's runs on a host that plays the GPU, and none without."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nvembed_deploy.artifact import open_artifact, read_manifest
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import HardwareError, InputError
from nvembed_deploy.runtimes import RuntimeOptions, load_encoder
from nvembed_deploy.runtimes.cuda_memory import Gpu
from nvembed_deploy.runtimes.encoder import Encoder
from nvembed_deploy.runtimes.tensorrt_runtime import TensorRTRuntime
from nvembed_deploy.tensorrt_api import gpu_target
from nvembed_deploy.text import Batch, Tokenizer, collate
from tests.runtimes.host_gpu import (
    RECORD,
    HostCache,
    HostCuda,
    HostEngine,
    Status,
    array_at,
    host_engine,
)

TEXTS = ["w1", "w2 w3", "w4 w5 w6 w7", "w8 " * 20, "w9 " * 50, "w1 w2", "w3", "w40 w41"]


def open_host(
    path: Path, record=RECORD, replays: int = 4
) -> tuple[TensorRTRuntime, HostCuda, HostEngine]:
    cuda = HostCuda()
    gpu = Gpu(0, cuda)
    loaded, engine = host_engine(path, cuda, record)
    artifact = open_artifact(path)
    runtime = TensorRTRuntime(loaded, gpu, artifact=artifact, record=record, replays=replays)
    return runtime, cuda, engine


def tokens_of(path: Path, texts: list[str]) -> Batch:
    spec = read_manifest(path).spec
    tokenizer = Tokenizer.load(path / "tokenizer.json", spec.text)
    return collate(tokenizer.tokenize(texts), spec.text.pad_id)


def encoder_of(path: Path, runtime: TensorRTRuntime) -> Encoder:
    spec = read_manifest(path).spec
    return Encoder(runtime, Tokenizer.load(path / "tokenizer.json", spec.text), spec=spec)


@pytest.mark.parametrize("flavour", list(Flavour))
def test_an_engine_gives_the_rows_of_the_graph(toy_artifact: Path, flavour: Flavour) -> None:
    record = replace(RECORD, flavour=flavour)
    with load_encoder(toy_artifact, "onnx", device="cpu") as encoder:
        expected = encoder.encode(TEXTS)
    runtime, _, _ = open_host(toy_artifact, record)
    for _ in range(3):  # run, record, replay
        got = encoder_of(toy_artifact, runtime).encode(TEXTS)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (runtime.name, runtime.device, runtime.max_tokens) == (flavour.value, "cuda:0", 64)


def test_a_batch_larger_than_any_profile_runs_in_parts(
    toy_artifact: Path, expected_row: Callable[..., np.ndarray]
) -> None:
    texts = [f"w{i} w{i + 1}" for i in range(11)]
    runtime, cuda, _ = open_host(toy_artifact, replays=0)
    got = runtime.embed(tokens_of(toy_artifact, texts))
    np.testing.assert_allclose(got, [expected_row(text) for text in texts], atol=1e-6)
    assert cuda.calls.count("cudaMemcpyAsync") == 3 * 4  # three inputs and the rows, 4 + 4 + 3


def test_a_shape_is_recorded_the_second_time_and_replayed_from_the_third(
    toy_artifact: Path,
) -> None:
    runtime, cuda, engine = open_host(toy_artifact)
    for number, text in enumerate(["w1 w2", "w3 w4", "w5 w6", "w7 w8 w9", "w9"], start=1):
        runtime.embed(tokens_of(toy_artifact, [text]))
        assert cuda.calls.count("cudaGraphLaunch") == max(0, number - 2)
    assert cuda.live == 1
    assert len(engine.contexts) == 2  # the profile's own, and the recording's


def test_a_recording_survives_runs_of_other_shapes_in_between(toy_artifact: Path) -> None:
    runtime, _, _ = open_host(toy_artifact)
    first = tokens_of(toy_artifact, ["w1 w2"])
    rows = runtime.embed(first)
    for texts in (["w3"], ["w4"] * 3, ["w5 " * 30], ["w6"] * 2, ["w7"] * 3):
        runtime.embed(tokens_of(toy_artifact, texts))
        np.testing.assert_array_equal(runtime.embed(first), rows)


def test_recordings_are_bounded_and_the_oldest_is_freed(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact, replays=2)
    for count in (1, 1, 2, 2, 3, 3, 4, 4):
        runtime.embed(tokens_of(toy_artifact, ["w1"] * count))
    assert cuda.live == 2
    assert cuda.calls.count("cudaGraphExecDestroy") == 2


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_a_gpu_that_refuses_to_record_runs_on_without(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    cuda.fails[name] = Status(900, "cudaErrorStreamCaptureUnsupported")
    batch = tokens_of(toy_artifact, ["w1 w2"])
    rows = [runtime.embed(batch) for _ in range(4)]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])
    assert caplog.text.count("no further shapes are recorded") == 1
    assert cuda.calls.count(name) == 1
    runtime.close()
    assert cuda.memory == {}


def test_rtx_records_by_itself_and_keeps_its_kernels(toy_artifact: Path) -> None:
    record = replace(RECORD, flavour=Flavour.RTX)
    for expected in (b"k", b"kk"):
        runtime, cuda, _ = open_host(toy_artifact, record)
        for _ in range(3):
            runtime.embed(tokens_of(toy_artifact, ["w1 w2"]))
        assert "cudaStreamBeginCapture" not in cuda.calls
        runtime.close()
        assert (toy_artifact / "engines" / "host.runtime-cache").read_bytes() == expected
    assert [p.name for p in (toy_artifact / "engines").glob(".*")] == []


@pytest.mark.parametrize("replays", [0, 4])
def test_rtx_records_each_shape_that_comes_again_once_and_none_if_none_may_be(
    toy_artifact: Path, replays: int
) -> None:
    runtime, _, engine = open_host(toy_artifact, replace(RECORD, flavour=Flavour.RTX), replays)
    for _ in range(5):
        for texts in (["w1 w2"], ["w3"] * 3, ["w4 " * 30]):
            runtime.embed(tokens_of(toy_artifact, texts))
    assert engine.own_captures == min(3, replays)


def test_rtx_gives_up_the_oldest_shape_for_a_new_one(toy_artifact: Path) -> None:
    record = replace(RECORD, flavour=Flavour.RTX)
    runtime, cuda, engine = open_host(toy_artifact, record, replays=2)
    for count in (1, 1, 2, 2, 3, 3, 2, 3):
        runtime.embed(tokens_of(toy_artifact, ["w1"] * count))
    assert engine.own_captures == 3
    runtime.close()
    assert cuda.memory == {}


@pytest.mark.parametrize("flavour", list(Flavour))
def test_a_gpu_without_room_for_another_context_runs_on_without_recording(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture, flavour: Flavour
) -> None:
    runtime, _, engine = open_host(toy_artifact, replace(RECORD, flavour=flavour))
    engine.room = 1
    batch = tokens_of(toy_artifact, ["w1 w2"])
    rows = [runtime.embed(batch) for _ in range(4)]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])
    assert caplog.text.count("no further shapes are recorded") == 1


def test_closing_frees_the_gpu_although_the_kernels_cannot_be_kept(
    toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, cuda, _ = open_host(toy_artifact, replace(RECORD, flavour=Flavour.RTX))
    runtime.embed(tokens_of(toy_artifact, ["w1"]))

    def refuse(_: object) -> bytes:
        raise RuntimeError("no kernels")

    monkeypatch.setattr(HostCache, "serialize", refuse)
    with pytest.raises(RuntimeError, match="no kernels"):
        runtime.close()
    assert cuda.memory == {}


def test_closing_frees_everything_and_embedding_afterwards_is_refused(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    for _ in range(2):
        runtime.embed(tokens_of(toy_artifact, ["w1"]))
    runtime.close()
    runtime.close()
    assert (cuda.memory, cuda.live) == ({}, 0)
    with pytest.raises(InputError, match="is closed"):
        runtime.embed(tokens_of(toy_artifact, ["w1"]))


def test_rows_that_were_given_are_not_written_over(toy_artifact: Path) -> None:
    runtime, _, _ = open_host(toy_artifact)
    first = runtime.embed(tokens_of(toy_artifact, ["w1"]))
    kept = first.copy()
    runtime.embed(tokens_of(toy_artifact, ["w2"]))
    np.testing.assert_array_equal(first, kept)


def test_threads_share_a_runtime(
    toy_artifact: Path, expected_row: Callable[..., np.ndarray]
) -> None:
    runtime, _, _ = open_host(toy_artifact)
    texts = [" ".join(f"w{i}" for i in range(n, 2 * n)) for n in range(1, 9)]

    def rows(text: str) -> list[np.ndarray]:
        return [runtime.embed(tokens_of(toy_artifact, [text]))[0] for _ in range(6)]

    with ThreadPoolExecutor(4) as pool:
        for text, got in zip(texts, pool.map(rows, texts), strict=True):
            np.testing.assert_allclose(got, [expected_row(text)] * 6, atol=1e-6)


def test_a_runtime_that_is_dropped_frees_what_one_that_is_closed_does(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    for _ in range(3):
        runtime.embed(tokens_of(toy_artifact, ["w1"]))
    assert (bool(cuda.memory), cuda.live) == (True, 1)
    del runtime
    assert (cuda.memory, cuda.live) == ({}, 0)


def test_the_threads_own_gpu_is_what_it_was_after_each_call(toy_artifact: Path) -> None:
    """Torch takes the GPU that is current: its tensors would go to the engine's."""
    runtime, cuda, _ = open_host(toy_artifact)
    batch = tokens_of(toy_artifact, ["w1"])
    arrays = arrays_on_gpu(cuda, batch)
    with pytest.raises(InputError, match="no profile takes"):
        runtime.embed_on_gpu(*arrays_on_gpu(cuda, tokens_of(toy_artifact, ["w1"] * 5)))
    cuda.current = 1
    for call in (lambda: runtime.embed(batch), lambda: runtime.embed_on_gpu(*arrays)):
        call()
        assert cuda.current == 1
    runtime.close()
    assert cuda.current == 1


class OnGpu:
    """An array of another library, by its pointer."""

    def __init__(self, cuda: HostCuda, array_BS: np.ndarray) -> None:
        pointer = cuda.allocate(array_BS.nbytes)
        array_at(pointer, array_BS.shape, array_BS.dtype)[...] = array_BS
        self.__cuda_array_interface__ = {
            "shape": array_BS.shape,
            "typestr": array_BS.dtype.str,
            "data": (pointer, False),
            "version": 3,
            "stream": 5,
        }


def arrays_on_gpu(cuda: HostCuda, batch: Batch) -> list[OnGpu]:
    arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
    return [OnGpu(cuda, array_BS) for array_BS in arrays]


def test_arrays_on_the_gpu_are_run_where_they_lie(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    batch = tokens_of(toy_artifact, ["w1 w2 w3", "w4"])
    expected = runtime.embed(batch)
    arrays, before = arrays_on_gpu(cuda, batch), cuda.calls.count("cudaMemcpyAsync")
    assert cuda.waited == [7]  # for the rows: nothing is read before
    cuda.waited.clear()
    rows = runtime.embed_on_gpu(*arrays)
    assert cuda.waited == [5, 7]  # where the arrays were written, then for the rows
    assert cuda.calls.count("cudaMemcpyAsync") == before
    where = rows.__cuda_array_interface__
    assert (where["shape"], where["typestr"], where["stream"]) == ((2, 16), "<f4", None)
    got = array_at(where["data"][0], where["shape"], np.float32)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_arrays_on_another_gpu_are_refused(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    cuda.current = 1
    arrays = arrays_on_gpu(cuda, tokens_of(toy_artifact, ["w1"]))
    with pytest.raises(InputError, match=r"input_ids lies in .* cuda:1, expected cuda:0"):
        runtime.embed_on_gpu(*arrays)


def test_a_batch_on_the_gpu_that_no_profile_takes_as_it_is_is_refused(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    arrays = arrays_on_gpu(cuda, tokens_of(toy_artifact, ["w1"] * 5))
    with pytest.raises(InputError, match=r"\(5, 3\), and no profile takes that as it is"):
        runtime.embed_on_gpu(*arrays)


def test_arrays_of_several_shapes_or_types_are_refused(toy_artifact: Path) -> None:
    runtime, cuda, _ = open_host(toy_artifact)
    arrays = arrays_on_gpu(cuda, tokens_of(toy_artifact, ["w1"]))
    narrow = SimpleNamespace(
        __cuda_array_interface__=arrays[0].__cuda_array_interface__ | {"typestr": "<i4"}
    )
    with pytest.raises(InputError, match="expected three int64 arrays of one shape"):
        runtime.embed_on_gpu(narrow, *arrays[1:])


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_driver_is_named(toy_artifact: Path, runtime: str) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from nvembed_deploy.runtimes import tensorrt_runtime

    open_runtime = {
        "tensorrt": tensorrt_runtime.open_tensorrt,
        "tensorrt-rtx": tensorrt_runtime.open_rtx,
    }[runtime]
    with pytest.raises(HardwareError, match="CUDA driver") as caught:
        open_runtime(open_artifact(toy_artifact), RuntimeOptions())
    assert "nvidia-smi" in caught.value.fix
    assert caught.value.exit_code == 3
