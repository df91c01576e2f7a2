"""This file owns a plan that was loaded, and TensorRT's words for running it.

Those for building are `tensorrt_api.py`'s. Where the two flavours differ, the module is asked what
it has. TensorRT for RTX records CUDA graphs by itself, one shape a context, and keeps the kernels
that it compiles at run time in a cache beside the plan; for full TensorRT the caller records. All
contexts share one piece of scratch memory: they run one after the other on one stream.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from nvembed_deploy.engine_record import EngineRecord, Shape
from nvembed_deploy.errors import ArtifactError, HardwareError, NVEmbedError
from nvembed_deploy.manifest import REEXPORT
from nvembed_deploy.runtimes.cuda_memory import OUT_OF_MEMORY_FIX
from nvembed_deploy.runtimes.protocol import INPUTS, OUTPUT
from nvembed_deploy.tensorrt_api import Api

_LOG_LINES = 8
_CUDA_MARKS = ("cudaError", "CUDA driver", "CUDA initialization", "no CUDA-capable")
"""In TensorRT's log where the GPU or its driver is the reason, not the plan."""
_MACHINE_MARKS = ("UNSUPPORTED_CC", "OLD_CUDA", "CUDA_ERROR")
"""Of TensorRT for RTX's diagnoses, those that another plan would meet too."""
_MEMORY_MARKS = (
    "out of memory",
    "OutOfMemory",
    "could not be allocated",
    "cudaErrorMemoryAllocation",
    "INSUFFICIENT_GPU_MEMORY",
)
"""In both, where the GPU's memory does not suffice: neither the plan nor the driver is at fault."""
_DRIVER_FIX = "install an NVIDIA driver for this GPU, and check nvidia-smi; or runtime='onnx'"

logger = logging.getLogger(__name__)


class LoadedEngine:
    """A plan in a GPU's memory; the calling thread's GPU is the one."""

    def __init__(self, api: Api, plan: Path, record: EngineRecord, graph: Path) -> None:
        """Load a plan.

        Args:
            api: the flavour that compiled it.
            plan: its file.
            record: what the manifest says of it.
            graph: the ONNX file beside it, whose weights a stripped plan takes.

        Raises:
            ArtifactError: the plan is damaged, or is not what the record says.
            HardwareError: there is no GPU, or the plan does not run on it.
        """
        self._api, self._plan, self._record = api, plan, record
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        # The bindings' Runtime keeps its logger where Python's collector does not look: a logger
        # that knew this object would keep the engine on the GPU for good.
        self._logger = api.logger(partial(_note, self._log))
        self._runtime = api.module.Runtime(self._logger)
        if record.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # its own runtime is inside the plan
        self._engine = self._load()
        if record.options.get("strip_weights"):
            self._refit(graph)
        self._check(record)
        self._scratch = 0
        self._cache: Any = None
        self._plain, self._capturing = self._ways_to_run()

    @property
    def records_itself(self) -> bool:
        """Whether the product records CUDA graphs without being told."""
        return self._cache is not None

    @property
    def scratch_bytes(self) -> int:
        """Memory that contexts share, for `use_scratch`: what the largest profile needs."""
        return int(self._engine.device_memory_size_v2)

    def use_scratch(self, pointer: int) -> None:
        """Give the contexts of later calls their memory."""
        self._scratch = pointer

    def context(self, profile: int, stream: int, *, records: bool = False) -> Context:
        """Return what runs the engine with one profile.

        Args:
            profile: its index.
            stream: where it will run.
            records: whether it runs one shape alone, at the same addresses: a product that
                records by itself then does.

        Raises:
            ArtifactError, HardwareError: TensorRT refuses.
        """
        how = self._capturing if records else self._plain
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self._refused("did not make an execution context")
        try:
            context.set_optimization_profile_async(profile, stream)
        except RuntimeError as error:  # the bindings' way to say no
            raise self._refused(f"did not take profile {profile}") from error
        context.set_device_memory(self._scratch, self.scratch_bytes)
        return Context(self, context)

    def save_cache(self) -> None:
        """Keep the kernels that were compiled at run time, for the next start."""
        kernels = self._cache.serialize() if self._cache is not None else None
        if kernels is None:
            return
        path = self._cache_path
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(bytes(kernels))
            temporary.replace(path)
        except OSError as error:
            logger.warning("the runtime cache is not kept: %s", error)
            with suppress(OSError):  # a read-only folder refuses that as well
                temporary.unlink(missing_ok=True)

    @property
    def _cache_path(self) -> Path:
        return self._plan.with_suffix(".runtime-cache")

    def _load(self) -> Any:  # noqa: ANN401 - TensorRT's class
        """Map the file, so that the host never holds a second copy of the model."""
        with self._plan.open("rb") as file:
            try:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    engine = self._runtime.deserialize_cuda_engine(data)
                    diagnosis = "" if engine else self._diagnose(data)
            except ValueError as error:  # an empty file cannot be mapped
                raise self._refused(f"cannot load it: {error}") from error
        if engine is None:
            raise self._refused(f"did not load it{diagnosis}")
        return engine

    def _diagnose(self, plan: mmap.mmap) -> str:
        """Return what the plan's header says against this machine, where the product can tell."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        header = plan[: self._runtime.engine_header_size]
        _, found = self._runtime.get_engine_validity(header)
        known = self._api.module.EngineInvalidityDiagnostics.__members__
        names = [name for name, bit in known.items() if int(found) & int(bit)]
        return f" ({', '.join(names)})" if names else ""

    def _refit(self, graph: Path) -> None:
        """Put the graph's weights into a plan that was compiled without them."""
        api = self._api.module
        try:
            refitter = api.Refitter(self._engine, self._logger)
            parser_refitter = api.OnnxParserRefitter(refitter, self._logger)
        except TypeError as error:  # the bindings' word for a null pointer
            raise self._refused(f"cannot take the weights of {graph}") from error
        if not (parser_refitter.refit_from_file(str(graph)) and refitter.refit_cuda_engine()):
            raise self._refused(f"did not take the weights of {graph}")

    def _check(self, record: EngineRecord) -> None:
        engine = self._engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        expected = {*INPUTS, OUTPUT}, len(record.profiles)
        if (names, engine.num_optimization_profiles) != expected:
            raise ArtifactError(
                f"{self._plan} has the tensors {sorted(names)} and "
                f"{engine.num_optimization_profiles} profiles, expected {sorted(expected[0])} "
                f"and {expected[1]}",
                _compile_fix(self._plan, record),
            )

    def _ways_to_run(self) -> tuple[Any, Any]:
        """Return how contexts are made that record nothing, and those that record one shape.

        Full TensorRT records nothing by itself: there both are the same.
        """
        api = self._api.module
        shared = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(api, "CudaGraphStrategy"):
            return shared, shared
        configs = []
        for strategy in (
            api.CudaGraphStrategy.DISABLED,
            api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE,
        ):
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(shared)
            config.cuda_graph_strategy = strategy
            if self._cache is None:
                self._cache = self._filled(config.create_runtime_cache())
            config.set_runtime_cache(self._cache)
            configs.append(config)
        return configs[0], configs[1]

    def _filled(self, cache: Any) -> Any:  # noqa: ANN401
        """Give a runtime cache the kernels of earlier starts, and return it."""
        if self._cache_path.is_file() and not cache.deserialize(self._cache_path.read_bytes()):
            logger.info("%s is of another driver or version, and begins anew", self._cache_path)
        return cache

    def _refused(self, what: str) -> NVEmbedError:
        """Return the error: the machine's if TensorRT blames CUDA or memory, else the plan's.

        It takes the log's lines along: they explain this refusal, and no later one.
        """
        log = "".join(f"\n    {line}" for line in self._log)
        self._log.clear()
        problem = f"{self._api.flavour} {self._api.version} {what}: {self._plan}{log}"
        if any(mark in problem for mark in _MEMORY_MARKS):
            return HardwareError(problem, OUT_OF_MEMORY_FIX)
        if any(mark in problem for mark in (*_CUDA_MARKS, *_MACHINE_MARKS)):
            return HardwareError(problem, _DRIVER_FIX)
        return ArtifactError(problem, _compile_fix(self._plan, self._record))


class Context:
    """An engine ready to run one profile's batches."""

    def __init__(self, engine: LoadedEngine, context: Any) -> None:  # noqa: ANN401
        """Wrap TensorRT's own context."""
        self._engine, self._context = engine, context

    def prepare(self, shape: Shape, addresses: Mapping[str, int]) -> None:
        """Say how large the next batch is, and where its tensors lie.

        Raises:
            ArtifactError, HardwareError: TensorRT refuses.
        """
        context = self._context
        are_set = [context.set_input_shape(name, tuple(shape)) for name in INPUTS]
        are_set += [context.set_tensor_address(name, addresses[name]) for name in addresses]
        if not all(are_set):
            raise self._engine._refused(f"did not take a batch of shape {tuple(shape)}")

    def run(self, stream: int) -> None:
        """Order a run.

        Raises:
            ArtifactError, HardwareError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise self._engine._refused("did not run")


def _note(log: deque[str], severity: str, text: str) -> None:
    """Keep a line of TensorRT's log for the error that may follow, and pass it on to ours."""
    log.append(f"[{severity}] {text}")
    logger.log(logging.WARNING if severity == "warning" else logging.ERROR, "%s", text)


def _compile_fix(plan: Path, record: EngineRecord) -> str:
    command = record.compile_command(plan.parent.parent)
    again = f"compile it again: {command}" if command else REEXPORT
    return f"check it with nvembed-deploy inspect --full; {again}"
