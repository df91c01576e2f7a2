"""This file owns a plan that was loaded, and TensorRT's words for running it.

Those for building are `tensorrt_api.py`'s. Where the two flavours differ, the module is asked what
it has. TensorRT for RTX records CUDA graphs by itself and keeps the kernels that it compiles at run
time in a cache beside the plan; for full TensorRT the caller records, and all contexts share one
piece of scratch memory.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvembed_deploy.engine_record import EngineRecord, Shape
from nvembed_deploy.errors import ArtifactError, HardwareError, NVEmbedError
from nvembed_deploy.runtimes.protocol import INPUTS, OUTPUT
from nvembed_deploy.tensorrt_api import Api

_LOG_LINES = 8
_CUDA_MARKS = ("cudaError", "CUDA driver", "CUDA initialization", "no CUDA-capable")
"""In TensorRT's log where the GPU or its driver is the reason, not the plan."""
_MACHINE_MARKS = ("UNSUPPORTED_CC", "OLD_CUDA", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")
"""Of TensorRT for RTX's diagnoses, those that another plan would meet too."""
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
        self._api, self._plan = api, plan
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._logger = api.logger(self._note)
        self._runtime = api.module.Runtime(self._logger)
        if record.options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # its own runtime is inside the plan
        self._engine = self._load()
        if record.options.get("strip_weights"):
            self._refit(graph)
        self._check(record)
        self._scratch = 0
        self._config, self._cache = self._runtime_config()

    @property
    def records_itself(self) -> bool:
        """Whether the product records CUDA graphs without being told."""
        return self._config is not None

    @property
    def scratch_bytes(self) -> int:
        """Memory that contexts share, for `use_scratch`; 0 where each allocates its own."""
        return 0 if self.records_itself else int(self._engine.device_memory_size_v2)

    def use_scratch(self, pointer: int) -> None:
        """Give the contexts of later calls their memory."""
        self._scratch = pointer

    def context(self, profile: int, stream: int) -> Context:
        """Return what runs the engine with one profile."""
        engine, api = self._engine, self._api.module
        if self._config is not None:
            context = engine.create_execution_context(self._config)
        else:
            strategy = api.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._refused("did not make an execution context")
        if not context.set_optimization_profile_async(profile, stream):
            raise self._refused(f"did not take profile {profile}")
        if self._config is None:
            context.set_device_memory(self._scratch, self.scratch_bytes)
        return Context(self, context)

    def save_cache(self) -> None:
        """Keep the kernels that were compiled at run time, for the next start."""
        if self._cache is None:
            return
        path = self._cache_path
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(bytes(self._cache.serialize()))
            temporary.replace(path)
        except OSError as error:
            logger.warning("the runtime cache is not kept: %s", error)
            temporary.unlink(missing_ok=True)

    @property
    def _cache_path(self) -> Path:
        return self._plan.with_suffix(".runtime-cache")

    def _note(self, severity: str, text: str) -> None:
        self._log.append(f"[{severity}] {text}")
        logger.log(logging.WARNING if severity == "warning" else logging.ERROR, "%s", text)

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
        refitter = api.Refitter(self._engine, self._logger)
        parser_refitter = api.OnnxParserRefitter(refitter, self._logger)
        if not parser_refitter.refit_from_file(str(graph)):
            raise self._refused(f"did not take the weights of {graph}")
        if not refitter.refit_cuda_engine():
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
                _compile_fix(self._plan, self._api),
            )

    def _runtime_config(self) -> tuple[Any, Any]:
        """Return how contexts are made, and the cache they fill; None, None without such."""
        api = self._api.module
        if not hasattr(api, "CudaGraphStrategy"):
            return None, None
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        if self._cache_path.is_file() and not cache.deserialize(self._cache_path.read_bytes()):
            logger.info("%s is of another driver or version, and begins anew", self._cache_path)
        config.set_runtime_cache(cache)
        return config, cache

    def _refused(self, what: str) -> NVEmbedError:
        """Return the error: the machine's if TensorRT blames CUDA, else the plan's."""
        log = "".join(f"\n    {line}" for line in self._log)
        problem = f"{self._api.flavour} {self._api.version} {what}: {self._plan}{log}"
        if any(mark in problem for mark in (*_CUDA_MARKS, *_MACHINE_MARKS)):
            return HardwareError(problem, _DRIVER_FIX)
        return ArtifactError(problem, _compile_fix(self._plan, self._api))


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


def _compile_fix(plan: Path, api: Api) -> str:
    artifact = plan.parent.parent
    return (
        "check it with nvembed-deploy inspect --full; compile it again with "
        f"nvembed-deploy compile {artifact} --engine {api.flavour} --overwrite"
    )
