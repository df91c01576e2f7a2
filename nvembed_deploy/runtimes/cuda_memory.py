"""This file owns a GPU's memory, stream and recordings: the words of `cuda.bindings.runtime`.

No torch and no cupy: a serving host needs `cuda-bindings` alone. Pointers are plain integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import HardwareError, InputError, MissingPackageError

_MODULE, _DRIVER_MODULE = "cuda.bindings.runtime", "cuda.bindings.driver"
_INSTALL = "pip install 'nvembed-deploy[tensorrt]'"
_DRIVER = (
    "install the NVIDIA driver, and check that nvidia-smi shows the GPU and CUDA_VISIBLE_DEVICES "
    "does not hide it; without a GPU: runtime='onnx', device='cpu'"
)
OUT_OF_MEMORY_FIX = (
    "end what else holds the GPU's memory (nvidia-smi lists it); compile with smaller profiles "
    "(--profile-from); export with --precision fp8 or int8; or use a GPU with more memory"
)
"""What an engine needs beside its weights, its largest profile decides, not the batch."""


def load_cudart() -> Any:  # noqa: ANN401 - a module
    """Import CUDA's bindings.

    Raises:
        MissingPackageError: they are not installed.
    """
    try:
        return import_module(_MODULE)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"running an engine needs {_MODULE}, which is not installed", _INSTALL
        ) from error


def gpu_index(device: str | None) -> int:
    """Return which GPU a device's name means: 1 for "cuda:1", 0 for "cuda" or None.

    Raises:
        InputError: it is no GPU's name.
    """
    kind, _, index = (device or "cuda").partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise InputError(
            f"device is {device!r}, expected cuda or cuda:N: TensorRT runs on NVIDIA GPUs",
            "leave it out for the first GPU; for another device, runtime='onnx'",
        )
    return int(index or 0)


class Gpu:
    """One GPU: allocations that live until `close`, one stream, and what is recorded on it."""

    def __init__(self, index: int, cudart: Any = None) -> None:  # noqa: ANN401 - a module
        """Take the GPU.

        Raises:
            HardwareError: there is no such GPU, or no driver.
            MissingPackageError: CUDA's bindings are not installed.
        """
        self._cudart = cudart or load_cudart()
        self._driver = cudart or import_module(_DRIVER_MODULE)
        self.index = index
        self._device: list[int] = []
        self._pinned: list[int] = []
        self.stream = 0
        count = self._count()
        if index >= count:
            raise HardwareError(
                f"device cuda:{index} was asked for; the NVIDIA driver shows {count} GPUs", _DRIVER
            )
        flags = self._cudart.cudaStreamNonBlocking
        with self.current():
            self.stream = int(self._call("cudaStreamCreateWithFlags", flags))

    @property
    def name(self) -> str:
        """Its model, as NVIDIA names it: "NVIDIA H200"."""
        return str(self._call("cudaGetDeviceProperties", self.index).name.decode())

    @property
    def target(self) -> str:
        """Its compute capability, as "sm90"."""
        attributes = self._cudart.cudaDeviceAttr
        names = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
        digits = [
            self._call("cudaDeviceGetAttribute", getattr(attributes, name), self.index)
            for name in names
        ]
        return "sm" + "".join(map(str, digits))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the calling thread's GPU, as TensorRT and a recording need it.

        At the end the thread has the one that it had before, which torch and others go by. The
        driver knows a thread that had none: choosing GPU 0 for it would take memory there.
        """
        _, before = self._driver.cuCtxGetCurrent()
        try:
            self._call("cudaSetDevice", self.index)
            yield
        finally:
            self._driver.cuCtxSetCurrent(before)

    def allocate(self, num_bytes: int) -> int:
        """Return GPU memory, aligned as TensorRT wants it, that lives until `close`."""
        with self.current():
            pointer = int(self._call("cudaMalloc", max(num_bytes, 1)))
        self._device.append(pointer)
        return pointer

    def pinned(self, size: int, dtype: type[np.generic]) -> NDArray[Any]:
        """Return page-locked host memory, [size], that lives until `close`."""
        num_bytes = max(size, 1) * np.dtype(dtype).itemsize
        flags = self._cudart.cudaHostAllocDefault
        with self.current():
            pointer = int(self._call("cudaHostAlloc", num_bytes, flags))
        self._pinned.append(pointer)
        block = (ctypes.c_byte * num_bytes).from_address(pointer)
        return np.ndarray((size,), dtype=dtype, buffer=memoryview(block))

    def holder(self, pointer: int) -> int | None:
        """Return which GPU's memory a pointer is into; None for the processor's.

        Managed memory comes to whoever reads it, so that it is this one's.
        """
        kinds = self._cudart.cudaMemoryType
        found = self._call("cudaPointerGetAttributes", pointer)
        if found.type == kinds.cudaMemoryTypeManaged:
            return self.index
        return int(found.device) if found.type == kinds.cudaMemoryTypeDevice else None

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Order a copy of page-locked, contiguous memory to the GPU."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(pointer, array.ctypes.data, array.nbytes, kind)

    def download(self, array: NDArray[Any], pointer: int) -> None:
        """Order a copy from the GPU into page-locked, contiguous memory."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, pointer, array.nbytes, kind)

    def wait(self, stream: int | None = None) -> None:
        """Wait for all that was ordered on a stream, its own unless another is named."""
        self._call("cudaStreamSynchronize", self.stream if stream is None else stream)

    def record(self, order: Callable[[], None]) -> Any:  # noqa: ANN401 - CUDA's class
        """Return a CUDA graph of what `order` orders; nothing runs meanwhile.

        Other threads may use the GPU: only this one's calls are recorded.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        graph = None
        try:
            try:
                order()
            finally:
                graph = self._call("cudaStreamEndCapture", self.stream)
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            if graph is not None:  # also where an order failed and the capture ended well
                self._call("cudaGraphDestroy", graph)

    def replay(self, recording: Any) -> None:  # noqa: ANN401 - CUDA's class
        """Order a recording to run."""
        self._call("cudaGraphLaunch", recording, self.stream)

    def forget(self, recording: Any) -> None:  # noqa: ANN401 - CUDA's class
        """Free a recording, if it is one."""
        if recording is not None:
            self._call("cudaGraphExecDestroy", recording)

    def close(self) -> None:
        """Free everything. Arrays from `pinned` must not be touched afterwards."""
        if not self.stream:
            return
        with self.current():
            self.wait()
            for pointer in self._device:
                self._call("cudaFree", pointer)
            for pointer in self._pinned:
                self._call("cudaFreeHost", pointer)
            self._device, self._pinned = [], []
            self._call("cudaStreamDestroy", self.stream)
            self.stream = 0

    def _copy(self, to: int, source: int, num_bytes: int, kind: Any) -> None:  # noqa: ANN401
        self._call("cudaMemcpyAsync", to, source, num_bytes, kind, self.stream)

    def _count(self) -> int:
        """Return how many GPUs the driver shows; "no device" is an answer, not an error."""
        try:
            return int(self._call("cudaGetDeviceCount"))
        except HardwareError as error:
            if "cudaErrorNoDevice" in error.problem:
                return 0
            raise

    def _call(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Call CUDA and return its result.

        Raises:
            HardwareError: CUDA refuses.
        """
        status, *results = getattr(self._cudart, name)(*arguments)
        if int(status) != 0:
            raise self._error(name, status)
        return results[0] if results else None

    def _error(self, name: str, status: Any) -> HardwareError:  # noqa: ANN401
        text = self._cudart.cudaGetErrorString(status)[1].decode()
        problem = f"CUDA refused {name} on cuda:{self.index}: {status.name}, {text}"
        if status.name == "cudaErrorMemoryAllocation":
            return HardwareError(problem, OUT_OF_MEMORY_FIX)
        return HardwareError(problem, _DRIVER)
