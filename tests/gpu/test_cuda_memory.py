"""Tests of CUDA's own bindings on an NVIDIA GPU: what `host_gpu.py` plays elsewhere. No TensorRT.

Each skips with its reason where the GPU, the bindings or torch for it are missing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.errors import HardwareError, InputError
from nvembed_deploy.runtimes.cuda_memory import OUT_OF_MEMORY_FIX, Gpu, load_cudart
from nvembed_deploy.runtimes.device_array import DeviceArray, check_holder, device_array
from nvembed_deploy.tensorrt_api import gpu_name, gpu_target

pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
if gpu_target() is None:
    pytest.skip("the NVIDIA driver shows no GPU", allow_module_level=True)

IDS = np.arange(1000, dtype=np.int64)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    taken = Gpu(0)
    yield taken
    taken.close()


def copied(gpu: Gpu) -> tuple[np.ndarray, np.ndarray, int]:
    """Return host memory that holds IDS, host memory that does not, and GPU memory between."""
    there, back = (gpu.pinned(len(IDS), np.int64) for _ in range(2))
    there[:], back[:] = IDS, -1
    return there, back, gpu.allocate(IDS.nbytes)


def cuda_torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    return torch


def test_both_of_cudas_libraries_tell_of_one_gpu(gpu: Gpu) -> None:
    assert (gpu.name, gpu.target) == (gpu_name(), gpu_target())


def test_what_goes_up_comes_down_again(gpu: Gpu) -> None:
    there, back, pointer = copied(gpu)
    gpu.upload(pointer, there)
    gpu.download(back, pointer)
    gpu.wait()
    np.testing.assert_array_equal(back, IDS)
    assert pointer % 256 == 0


def test_a_recording_runs_only_when_it_is_replayed(gpu: Gpu) -> None:
    there, back, pointer = copied(gpu)

    def order() -> None:
        gpu.upload(pointer, there)
        gpu.download(back, pointer)

    with gpu.current():
        recording = gpu.record(order)
        gpu.wait()
        assert set(back) == {-1}
        for step in (0, 5):
            there[:] = IDS + step
            gpu.replay(recording)
            gpu.wait()
            np.testing.assert_array_equal(back, IDS + step)
        gpu.forget(recording)


def test_a_recording_that_fails_leaves_the_stream_usable(gpu: Gpu) -> None:
    there, back, pointer = copied(gpu)

    def refuse() -> None:
        gpu.upload(pointer, there)
        raise ZeroDivisionError

    with gpu.current():
        with pytest.raises(ZeroDivisionError):
            gpu.record(refuse)
        with pytest.raises(HardwareError, match="cudaErrorStreamCapture"):
            gpu.record(gpu.wait)  # a capture does not allow to wait
        gpu.upload(pointer, there)
        gpu.download(back, pointer)
        gpu.wait()
    np.testing.assert_array_equal(back, IDS)


def test_another_thread_uses_the_gpu_while_one_records(gpu: Gpu) -> None:
    there, _, pointer = copied(gpu)
    other, done = Gpu(0), list[int]()

    def order() -> None:
        gpu.upload(pointer, there)
        thread = threading.Thread(target=lambda: done.append(other.allocate(1 << 20)))
        thread.start()
        thread.join()

    with gpu.current():
        gpu.forget(gpu.record(order))
    other.close()
    assert len(done) == 1


def test_memory_that_runs_out_is_told_and_what_is_there_stays(gpu: Gpu) -> None:
    there, back, pointer = copied(gpu)
    with pytest.raises(HardwareError, match="cudaErrorMemoryAllocation") as caught:
        gpu.allocate(1 << 44)
    assert caught.value.fix == OUT_OF_MEMORY_FIX
    gpu.upload(pointer, there)
    gpu.download(back, pointer)
    gpu.wait()
    np.testing.assert_array_equal(back, IDS)


def test_a_closed_gpu_has_given_its_memory_back() -> None:
    cudart = load_cudart()
    Gpu(0).close()  # the driver keeps its own for the process
    before = cudart.cudaMemGetInfo()[1]
    gpu = Gpu(0)
    gpu.allocate(1 << 28)
    gpu.pinned(1 << 20, np.int64)
    gpu.close()
    assert before - cudart.cudaMemGetInfo()[1] < 1 << 26


def test_who_holds_memory_is_told(gpu: Gpu) -> None:
    host = gpu.pinned(4, np.int64)
    assert gpu.holder(gpu.allocate(8)) == 0
    assert gpu.holder(host.ctypes.data) is None
    assert gpu.holder(IDS.ctypes.data) is None
    with pytest.raises(InputError, match="in the processor's memory"):
        check_holder(DeviceArray(host.ctypes.data, (4,), "<i8"), gpu)


def test_a_thread_has_the_gpu_that_it_had(gpu: Gpu) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    seen: list[Any] = []

    def use() -> None:
        with gpu.current():
            seen.append(int(driver.cuCtxGetCurrent()[1]))
        seen.append(int(driver.cuCtxGetCurrent()[1]))

    thread = threading.Thread(target=use)  # a new one has none
    thread.start()
    thread.join()
    assert seen[0] != 0
    assert seen[1] == 0


@pytest.mark.parametrize("library", ["torch", "cupy"])
@pytest.mark.parametrize("hides_interface", [False, True], ids=["interface", "dlpack"])
def test_an_array_on_the_gpu_is_read_where_it_lies(
    gpu: Gpu, library: str, hides_interface: bool
) -> None:
    if library == "torch":
        array = cuda_torch().from_numpy(IDS.reshape(10, 100)).cuda()
        pointer = array.data_ptr()
    else:
        array = pytest.importorskip("cupy").asarray(IDS.reshape(10, 100))
        pointer = array.data.ptr

    class Plain:
        """An array that says no more than DLPack does."""

        __dlpack__, __dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    found = device_array(Plain() if hides_interface else array, gpu.stream)
    assert (found.pointer, found.shape, found.typestr) == (pointer, (10, 100), "<i8")
    check_holder(found, gpu)
    back = gpu.pinned(len(IDS), np.int64)
    gpu.download(back, found.pointer)
    gpu.wait()
    np.testing.assert_array_equal(back, IDS)


def test_torch_and_cupy_take_our_array_without_a_copy(gpu: Gpu) -> None:
    torch = cuda_torch()
    there, _, pointer = copied(gpu)
    gpu.upload(pointer, there)
    gpu.wait()
    ours = DeviceArray(pointer, (10, 100), "<i8")
    taken = torch.as_tensor(ours, device="cuda")
    assert taken.data_ptr() == pointer
    np.testing.assert_array_equal(taken.cpu().numpy().ravel(), IDS)
    cupy = pytest.importorskip("cupy")
    assert cupy.asarray(ours).data.ptr == pointer
