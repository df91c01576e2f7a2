"""This file owns arrays that lie on a GPU already: taken and given without a copy.

What comes in may be of any library that tells its pointer: `__cuda_array_interface__` (torch, cupy,
numba, jax) or `__dlpack__`. What goes out has the former, so that `torch.as_tensor(array,
device="cuda")` and `cupy.asarray(array)` share its memory. None of them is imported here.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import prod
from typing import Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.cuda_memory import Gpu

_CUDA_DEVICE = 2
"""Source: kDLCUDA in dlpack.h."""
_KINDS = {0: "i", 1: "u", 2: "f"}
"""Source: DLDataTypeCode in dlpack.h, as numpy's letters."""
_TELLS_STREAM, _DEFAULT_STREAM = 3, 1
"""Source: the same interface, and cudaStreamLegacy. torch has version 2 and works on that stream
unless it was told of another: then synchronise before."""
_ALIGNMENT = 256
"""Source: IExecutionContext::setTensorAddress wants addresses that are multiples of it."""


class _DLTensor(ctypes.Structure):
    """Source: DLTensor in dlpack.h, its nested structures written flat."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in GPU memory.

    Attributes:
        pointer: where it begins.
        shape: of it.
        typestr: its numbers as numpy writes them: "<i8".
        stream: where it is being written, if that is not over; None where it is.
        owner: what keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    typestr: str
    stream: int | None = None
    owner: Any = field(default=None, compare=False, repr=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Say where it lies, for other libraries."""
        return {
            "shape": self.shape,
            "typestr": self.typestr,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }


def is_on_gpu(array: object) -> bool:
    """Say whether an array tells that it lies on a GPU."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _CUDA_DEVICE


def device_array(array: Any, stream: int, name: str = "array") -> DeviceArray:  # noqa: ANN401
    """Return where an array lies on the GPU.

    Args:
        array: of any library.
        stream: where it will be read: a library that writes it still is asked to be first.
        name: of the array, for messages.

    Raises:
        InputError: it is not on a GPU, or not contiguous, or begins at an odd place.
    """
    if hasattr(array, "__cuda_array_interface__"):
        found, strides = _from_interface(array)
    elif is_on_gpu(array):
        found, strides = read_dlpack(array, stream)
    else:
        raise InputError(
            f"{name} is a {type(array).__name__}, expected an array on the GPU",
            "embed takes arrays of the processor; or move it to the GPU",
        )
    itemsize = int(found.typestr[2:])
    if strides is not None and not _is_contiguous(found.shape, strides, itemsize):
        raise InputError(f"{name} has strides {strides}, expected a contiguous array", "copy it")
    if found.pointer % _ALIGNMENT:
        raise InputError(
            f"{name} begins at {found.pointer:#x}, expected a multiple of {_ALIGNMENT} bytes",
            "copy it: a slice of a larger array seldom begins there",
        )
    return found


def check_holder(array: DeviceArray, gpu: Gpu, name: str = "array") -> None:
    """Refuse an array of another GPU: reading it would be the last that CUDA does in this process.

    Raises:
        InputError: it lies elsewhere.
    """
    holder = gpu.holder(array.pointer)
    if holder != gpu.index:
        where = "the processor's memory" if holder is None else f"the memory of cuda:{holder}"
        raise InputError(
            f"{name} lies in {where}, expected cuda:{gpu.index}, where the engine runs",
            f"move it to cuda:{gpu.index}, or load an encoder on the GPU that holds it",
        )


def read_dlpack(array: Any, stream: int | None) -> tuple[DeviceArray, tuple[int, ...] | None]:  # noqa: ANN401
    """Return where an array lies, and its strides in bytes, from its DLPack capsule.

    Source: the array API's `__dlpack__`; the capsule is not consumed, so that it keeps the memory.
    """
    capsule = array.__dlpack__(stream=stream) if stream is not None else array.__dlpack__()
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(read(capsule, b"dltensor"))
    itemsize = tensor.bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = (
        tuple(size * itemsize for size in tensor.strides[: tensor.ndim]) if tensor.strides else None
    )
    typestr = f"<{_KINDS.get(tensor.code, 'V')}{itemsize}"
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    return DeviceArray(pointer, shape, typestr, owner=capsule), strides


def _from_interface(array: Any) -> tuple[DeviceArray, tuple[int, ...] | None]:  # noqa: ANN401
    """Source: numba's page "CUDA Array Interface"; before version 3 it said nothing of streams."""
    said = array.__cuda_array_interface__
    stream = said.get("stream") if said["version"] >= _TELLS_STREAM else _DEFAULT_STREAM
    pointer, shape = int(said["data"][0]), tuple(said["shape"])
    found = DeviceArray(pointer, shape, said["typestr"], stream, owner=array)
    return found, said.get("strides")


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = [itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(
        size == 1 or got == wanted
        for size, got, wanted in zip(shape, strides, expected, strict=True)
    )
