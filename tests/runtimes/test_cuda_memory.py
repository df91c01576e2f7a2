"""Tests of runtimes/cuda_memory.py: CUDA's own bindings where they load, and a host that plays."""

from __future__ import annotations

import ctypes
import inspect
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from nvembed_deploy.errors import HardwareError, InputError, MissingPackageError
from nvembed_deploy.runtimes.cuda_memory import Gpu, gpu_index
from nvembed_deploy.tensorrt_api import gpu_target
from tests.runtimes.host_gpu import HostCuda, Status, array_at

OUT_OF_MEMORY = Status(2, "cudaErrorMemoryAllocation")
NO_DEVICE = Status(100, "cudaErrorNoDevice")


def test_the_host_that_plays_has_only_calls_that_cuda_has() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    driver = pytest.importorskip("cuda.bindings.driver", reason="pip install cuda-bindings")
    names = [name for name in dir(HostCuda) if name.startswith("cu") and name != "current"]
    assert len(names) > 17
    known = {*dir(runtime), *dir(driver)}
    assert [name for name in names if name.startswith("cu") and name not in known] == []
    kinds = ("cudaMemcpyKind", "cudaMemoryType", "cudaStreamCaptureMode", "cudaDeviceAttr")
    for kind in kinds:
        for member in vars(getattr(HostCuda, kind)):
            assert hasattr(getattr(runtime, kind), member), member


def test_every_call_is_one_of_the_host_that_plays() -> None:
    """So that the test above is about all of them."""
    source = inspect.getsource(Gpu)
    called = set(re.findall(r'_call\("(\w+)"|_(?:cudart|driver)\.(\w+)', source))
    called = {name for pair in called for name in pair if name}
    assert {name for name in called if not hasattr(HostCuda, name)} == set()
    assert len(called) > 15


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has a GPU")
def test_cuda_itself_says_that_there_is_no_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    with pytest.raises(HardwareError, match=r"cudaGetDeviceCount on cuda:0: cudaError") as caught:
        Gpu(0)
    assert "install the NVIDIA driver" in caught.value.fix


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackageError, match=r"cuda\.bindings\.runtime") as caught:
        Gpu(0)
    assert "nvembed-deploy[tensorrt]" in caught.value.fix


@pytest.mark.parametrize(("gpus", "index"), [(0, 0), (2, 2)])
def test_a_gpu_that_is_not_there_is_refused(gpus: int, index: int) -> None:
    with pytest.raises(HardwareError, match=f"the NVIDIA driver shows {gpus} GPUs"):
        Gpu(index, HostCuda(gpus=gpus))


def test_a_driver_without_devices_counts_none() -> None:
    with pytest.raises(HardwareError, match="shows 0 GPUs"):
        Gpu(0, HostCuda(fails={"cudaGetDeviceCount": NO_DEVICE}))


def test_memory_that_runs_out_says_what_takes_less() -> None:
    gpu = Gpu(1, HostCuda(fails={"cudaMalloc": OUT_OF_MEMORY}))
    with pytest.raises(HardwareError, match="cudaMalloc on cuda:1: cudaErrorMemoryAlloc") as caught:
        gpu.allocate(1 << 40)
    assert "--profile-from" in caught.value.fix
    assert "max_batch_tokens" not in caught.value.fix  # buffers have the largest profile's size


def test_the_target_is_written_as_engines_write_it() -> None:
    assert Gpu(0, HostCuda()).target == "sm90"
    assert Gpu(0, HostCuda(capability=(12, 0))).target == "sm120"


def test_what_goes_up_comes_down_again() -> None:
    gpu = Gpu(0, HostCuda())
    there, back = gpu.pinned(5, np.int64), gpu.pinned(5, np.int64)
    there[:] = range(5)
    pointer = gpu.allocate(there.nbytes)
    gpu.upload(pointer, there)
    gpu.download(back, pointer)
    np.testing.assert_array_equal(back, there)


def test_a_recording_runs_only_when_it_is_replayed() -> None:
    cuda = HostCuda()
    gpu = Gpu(0, cuda)
    host, pointer = gpu.pinned(1, np.int64), gpu.allocate(8)
    host[0] = 3
    recording = gpu.record(lambda: gpu.upload(pointer, host))
    device = array_at(pointer, (1,), np.int64)
    assert device[0] != 3
    host[0] = 4
    gpu.replay(recording)
    assert device[0] == 4
    gpu.forget(recording)
    assert cuda.live == 0


def test_a_capture_ends_also_when_an_order_fails() -> None:
    cuda = HostCuda()
    gpu = Gpu(0, cuda)
    with pytest.raises(ZeroDivisionError):
        gpu.record(lambda: ctypes.sizeof(ctypes.c_int) // 0)
    assert cuda.captured is None
    assert cuda.calls.count("cudaGraphDestroy") == 1


def test_a_gpu_has_the_name_that_its_maker_gives_it() -> None:
    assert Gpu(0, HostCuda()).name == "NVIDIA H200"


def test_memory_is_told_by_the_gpu_that_holds_it() -> None:
    cuda = HostCuda()
    gpu = Gpu(1, cuda)
    assert gpu.holder(gpu.allocate(8)) == 1
    assert gpu.holder(Gpu(0, cuda).allocate(8)) == 0
    assert gpu.holder(4096) is None
    managed = SimpleNamespace(type=HostCuda.cudaMemoryType.cudaMemoryTypeManaged, device=0)
    cuda.cudaPointerGetAttributes = lambda _: (Status(), managed)  # type: ignore[method-assign]
    assert gpu.holder(4096) == 1


def test_closing_twice_frees_once() -> None:
    cuda = HostCuda()
    gpu = Gpu(0, cuda)
    gpu.allocate(8)
    gpu.pinned(3, np.float32)
    gpu.close()
    gpu.close()
    assert cuda.memory == {}
    assert cuda.calls.count("cudaStreamDestroy") == 1


def test_devices_are_named_as_elsewhere() -> None:
    assert [gpu_index(name) for name in (None, "cuda", "cuda:0", "cuda:3")] == [0, 0, 0, 3]
    for name in ("cpu", "cuda:x", "tensorrt", "cuda:-1"):
        with pytest.raises(InputError, match="expected cuda or cuda:N"):
            gpu_index(name)
