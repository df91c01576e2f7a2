"""Tests of runtimes/device_array.py: pointers of other libraries, taken as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.cuda_memory import Gpu
from nvembed_deploy.runtimes.device_array import (
    DeviceArray,
    check_holder,
    device_array,
    is_on_gpu,
    read_dlpack,
)
from tests.runtimes.host_gpu import HostCuda


def interface(**changes: Any) -> SimpleNamespace:
    said = {"shape": (2, 3), "typestr": "<i8", "data": (512, False), "version": 3, "stream": None}
    return SimpleNamespace(__cuda_array_interface__=said | changes)


def test_an_interface_is_taken_as_it_is() -> None:
    array = interface(stream=5, strides=(24, 8))
    found = device_array(array, stream=7)
    assert (found.pointer, found.shape, found.typestr, found.stream) == (512, (2, 3), "<i8", 5)
    assert found.owner is array


def test_an_array_that_tells_no_stream_is_waited_for_on_the_default_one() -> None:
    """Torch's interface has version 2."""
    assert device_array(interface(version=2), 0).stream == 1
    assert device_array(interface(), 0).stream is None


def test_an_axis_of_one_may_have_any_stride() -> None:
    assert device_array(interface(shape=(1, 3), strides=(999, 8)), 0).shape == (1, 3)


@pytest.mark.parametrize("strides", [(8, 16), (48, 8), (24, 16)])
def test_an_array_with_gaps_is_refused(strides: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"ids has strides .*, expected a contiguous array"):
        device_array(interface(strides=strides), 0, "ids")


def test_an_odd_address_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 256 bytes"):
        device_array(interface(data=(520, False)), 0)


def test_an_array_of_the_processor_is_refused() -> None:
    assert not is_on_gpu(np.zeros(3))
    with pytest.raises(InputError, match="is a ndarray, expected an array on the GPU"):
        device_array(np.zeros(3), 0)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 5)])
def test_dlpack_is_read_to_the_byte(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    found, strides = read_dlpack(array, stream=None)
    assert (found.pointer, found.shape) == (array.ctypes.data, shape)
    assert np.dtype(found.typestr) == dtype
    assert strides in (None, array.strides)


def test_dlpack_tells_of_a_slice() -> None:
    array = np.zeros((4, 6), np.int64)[1:, ::2]
    found, strides = read_dlpack(array, stream=None)
    assert (found.pointer, found.shape, strides) == (array.ctypes.data, (3, 3), array.strides)


def test_dlpack_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12, dtype=torch.int64).reshape(3, 4)
    found, _ = read_dlpack(tensor, stream=None)
    assert (found.pointer, found.shape, found.typestr) == (tensor.data_ptr(), (3, 4), "<i8")


def test_the_capsule_keeps_the_memory() -> None:
    array = np.arange(3)
    found, _ = read_dlpack(array, stream=None)
    before = found.owner
    del array
    assert "dltensor" in repr(before)  # not consumed: it frees when it is dropped


def test_an_array_on_the_gpu_is_known_by_its_dlpack_device() -> None:
    assert is_on_gpu(SimpleNamespace(__dlpack_device__=lambda: (2, 0)))
    assert not is_on_gpu(SimpleNamespace(__dlpack_device__=lambda: (1, 0)))


def test_what_is_given_can_be_taken_again() -> None:
    given = DeviceArray(1024, (2, 4), "<f4")
    assert device_array(given, 0) == given


def test_an_array_of_another_gpu_or_of_the_processor_is_refused() -> None:
    cuda = HostCuda()
    first, second = Gpu(0, cuda), Gpu(1, cuda)
    array = DeviceArray(second.allocate(64), (1, 8), "<i8")
    check_holder(array, second)
    with pytest.raises(InputError, match="ids lies in the memory of cuda:1, expected cuda:0"):
        check_holder(array, first, "ids")
    with pytest.raises(InputError, match="lies in the processor's memory, expected cuda:0"):
        check_holder(DeviceArray(4096, (1, 8), "<i8"), first)
