# ruff: noqa: D105, N802, N815 - CUDA's own names
"""A GPU for tests that have none: CUDA on host memory, an engine that ONNX Runtime computes.

It stands in for NVIDIA's two libraries, not for code of ours, and is as strict as they are: what is
ordered while a stream is captured does not run, and nothing is bound meanwhile; a shape outside of
the profile is refused, a recording of a context that was changed is refused, nothing is copied for
another GPU than the current one, memory is freed once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from nvembed_deploy.engine_record import EngineFacts, EngineRecord, Flavour, Profile, Shape
from nvembed_deploy.runtimes.loaded_engine import LoadedEngine
from nvembed_deploy.tensorrt_api import Api

SHORT = Profile("short", Shape(1, 2), Shape(1, 8), Shape(4, 16))
LONG = Profile("long", Shape(1, 2), Shape(1, 32), Shape(2, 64))
RECORD = EngineRecord(
    flavour=Flavour.TENSORRT,
    version="11.4.0.106",
    targets=("sm90",),
    profiles=(SHORT, LONG),
    facts=EngineFacts(fused_attention=0, linears={}, kernels=1),
    seconds=1.0,
)


@dataclass
class Status:
    """An error code as CUDA's bindings give it."""

    value: int = 0
    name: str = "cudaSuccess"

    def __int__(self) -> int:
        return self.value


@dataclass
class Recording:
    """What was ordered during a capture."""

    orders: list[Callable[[], None]]
    is_freed: bool = False


def call(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Make a method one of CUDA's: it is counted, and returns a status before its result."""

    @functools.wraps(function)
    def counted(self: HostCuda, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(function.__name__)
        if function.__name__ in self.fails:
            return (self.fails[function.__name__], None)
        try:
            return (Status(), function(self, *arguments))
        except MemoryError:
            return (Status(2, "cudaErrorMemoryAllocation"), None)

    return counted


@dataclass
class HostCuda:
    """The functions of `cuda.bindings.runtime` that the runtime calls, and what they did."""

    gpus: int = 2
    capability: tuple[int, int] = (9, 0)
    fails: dict[str, Status] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    holders: dict[int, int] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    waited: list[int] = field(default_factory=list)
    current: int = 0
    name: bytes = b"NVIDIA H200"
    captured: Recording | None = None
    live: int = 0
    most_bytes: int = 1 << 30

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1
    )

    def order(self, what: Callable[[], None]) -> None:
        """Run at once, or note during a capture."""
        (self.captured.orders.append if self.captured else lambda f: f())(what)

    @call
    def cudaGetErrorString(self, status: Status) -> bytes:
        return b"a text about " + status.name.encode()

    @call
    def cudaGetDeviceCount(self) -> int:
        return self.gpus

    @call
    def cudaSetDevice(self, index: int) -> None:
        assert index < self.gpus
        self.current = index

    @call
    def cuCtxGetCurrent(self) -> int:
        return self.current

    @call
    def cuCtxSetCurrent(self, current: int) -> None:
        self.current = current

    @call
    def cudaGetDeviceProperties(self, _index: int) -> Any:
        return SimpleNamespace(name=self.name)

    @call
    def cudaPointerGetAttributes(self, pointer: int) -> Any:
        holder = self.holders.get(pointer)
        return SimpleNamespace(type=0 if holder is None else 2, device=holder or 0)

    @call
    def cudaDeviceGetAttribute(self, attribute: int, _index: int) -> int:
        return self.capability[attribute]

    @call
    def cudaStreamCreateWithFlags(self, _flags: int) -> int:
        return 7

    @call
    def cudaStreamDestroy(self, stream: int) -> None:
        assert stream == 7

    @call
    def cudaStreamSynchronize(self, stream: int) -> None:
        assert self.captured is None, "a capture does not allow to wait"
        self.waited.append(stream)

    @call
    def cudaMalloc(self, size: int) -> int:
        return self.allocate(size)

    def allocate(self, size: int) -> int:
        assert self.captured is None
        if size > self.most_bytes:
            raise MemoryError
        block = ctypes.create_string_buffer(size + 256)
        pointer = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(pointer, 0xAB, size)  # memory of a GPU is not clean
        self.memory[pointer], self.holders[pointer] = block, self.current
        return pointer

    @call
    def cudaHostAlloc(self, size: int, _flags: int) -> int:
        pointer = self.allocate(size)
        self.pinned.add(pointer)
        return pointer

    @call
    def cudaFree(self, pointer: int) -> None:
        del self.memory[pointer]

    @call
    def cudaFreeHost(self, pointer: int) -> None:
        del self.memory[pointer]

    @call
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        assert stream == 7
        assert (kind, to in self.pinned, source in self.pinned) in (
            (1, False, True),
            (2, True, False),
        )
        assert self.holders[to] == self.holders[source] == self.current
        self.order(lambda: ctypes.memmove(to, source, size))

    @call
    def cudaStreamBeginCapture(self, _stream: int, _mode: int) -> None:
        self.captured = Recording([])

    @call
    def cudaStreamEndCapture(self, _stream: int) -> Recording:
        recording, self.captured = self.captured, None
        assert recording is not None
        return recording

    @call
    def cudaGraphInstantiate(self, graph: Recording, _flags: int) -> Recording:
        self.live += 1
        return Recording(graph.orders)

    @call
    def cudaGraphDestroy(self, graph: Recording) -> None:
        graph.is_freed = True

    @call
    def cudaGraphLaunch(self, recording: Recording, _stream: int) -> None:
        assert not recording.is_freed
        for order in recording.orders:
            order()

    @call
    def cudaGraphExecDestroy(self, recording: Recording) -> None:
        assert not recording.is_freed
        recording.is_freed = True
        self.live -= 1


@dataclass
class HostDriver:
    """The driver's own library, `libcuda.so.1`, as ctypes opens it."""

    name: bytes = b"NVIDIA H200"
    capability: tuple[int, int] = (9, 0)

    def cuInit(self, _flags: int) -> int:
        return 0

    def cuDeviceGet(self, _device: Any, index: int) -> int:
        return 0 if index == 0 else 101

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:
        value._obj.value = self.capability[attribute - 75]
        return 0

    def cuDeviceGetName(self, name: Any, size: int, _device: Any) -> int:
        name.value = self.name[: size - 1]
        return 0


class HostContext:
    """An execution context: shapes, addresses, and a run of the graph over raw memory."""

    def __init__(self, engine: HostEngine, *, captures: bool) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.profile, self.changes, self.scratch = 0, 0, 0
        self.captures, self.captured = captures, None

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        if profile >= len(self.engine.record.profiles):
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = profile
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.scratch = pointer if size >= self.engine.device_memory_size_v2 else 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.engine.cuda.captured is None, "a shape is bound before a capture"
        profile = self.engine.record.profiles[self.profile]
        fits = zip(profile.min, shape, profile.max, strict=True)
        self.changes += self.shapes.get(name) != shape
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in fits)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.engine.cuda.captured is None, "an address is bound before a capture"
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, _stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        changes = self.changes

        def run() -> None:
            assert self.changes == changes, "a recorded context was changed"
            assert self.scratch, "a context has no memory of its own"
            feed = {
                name: array_at(addresses[name], shape, np.int64) for name, shape in shapes.items()
            }
            (rows,) = self.engine.session.run(None, feed)
            array_at(addresses["sentence_embedding"], rows.shape, np.float32)[...] = rows

        if self.captures and self.captured != (shapes, addresses):  # it keeps one graph
            self.captured = shapes, addresses
            self.engine.own_captures += 1
        self.engine.cuda.order(run)
        return True


class HostEngine:
    """An engine whose arithmetic is ONNX Runtime's."""

    device_memory_size_v2 = 4096

    def __init__(self, graph: Path, record: EngineRecord, cuda: HostCuda, tensors: Any) -> None:
        self.session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.record, self.cuda, self.tensors = record, cuda, tensors
        self.num_optimization_profiles = len(record.profiles)
        self.num_io_tensors = len(tensors)
        self.own_captures = 0
        self.room = 1 << 10
        self.contexts: list[HostContext] = []

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index]

    def create_execution_context(self, how: Any) -> HostContext | None:
        config = how if isinstance(how, HostConfig) else HostConfig(allocation=how, cache=HostCache)
        assert config.allocation == USER_MANAGED
        assert config.cache is not None
        if len(self.contexts) >= self.room:
            return None
        self.contexts.append(HostContext(self, captures=config.cuda_graph_strategy == CAPTURE))
        return self.contexts[-1]

    def create_runtime_config(self) -> HostConfig:
        return HostConfig()


USER_MANAGED, CAPTURE = 2, 1


@dataclass
class HostConfig:
    """How a context is made; at first each allocates its own memory and records nothing."""

    cuda_graph_strategy: int = 0
    allocation: int = 0
    cache: Any = None

    def create_runtime_cache(self) -> HostCache:
        return HostCache()

    def set_runtime_cache(self, cache: HostCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.allocation = strategy


class HostCache:
    """A runtime cache: what it was given, and one kernel more."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, data: bytes) -> bool:
        self.kernels = data if data.startswith(b"k") else b""
        return data.startswith(b"k")

    def serialize(self) -> bytes:
        return self.kernels + b"k"


TENSORS = ("input_ids", "attention_mask", "pool_mask", "sentence_embedding")


def host_api(
    graph: Path, cuda: HostCuda, record: EngineRecord = RECORD, tensors: Any = TENSORS
) -> tuple[Api, HostEngine]:
    """Return an `Api` whose module runs `graph` on the host, and its one engine."""
    engine = HostEngine(graph, record, cuda, tensors)
    module = SimpleNamespace(
        __version__=record.version,
        ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2}),
        Runtime=lambda _logger: SimpleNamespace(
            deserialize_cuda_engine=lambda data: engine if bytes(data[:4]) == b"plan" else None
        ),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=USER_MANAGED),
    )
    if record.flavour is Flavour.RTX:
        module.CudaGraphStrategy = SimpleNamespace(DISABLED=0, WHOLE_GRAPH_CAPTURE=CAPTURE)
    return Api(record.flavour, module), engine


def host_engine(
    artifact: Path, cuda: HostCuda, record: EngineRecord = RECORD
) -> tuple[LoadedEngine, HostEngine]:
    """Return an artifact's graph as a loaded engine."""
    graph, plan = artifact / "model.onnx", artifact / "engines" / "host.plan"
    plan.parent.mkdir(exist_ok=True)
    plan.write_bytes(b"plan")
    api, engine = host_api(graph, cuda, record)
    return LoadedEngine(api, plan, record, graph), engine


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = (ctypes.c_byte * size).from_address(address)
    return np.frombuffer(block, dtype).reshape(shape)
