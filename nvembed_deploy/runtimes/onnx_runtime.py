"""This file owns the ONNX Runtime runtime: an artifact's graph on CPU, CUDA or TensorRT providers.

A device asked for by name is the one that is used, or an error says why not: ONNX Runtime itself
falls back to the CPU with a line on the terminal. torch is never imported here.
Legend: B batch, D hidden.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from nvembed_deploy.artifact import Artifact
from nvembed_deploy.engine_record import Shape
from nvembed_deploy.errors import ArtifactError, HardwareError, InputError, MissingPackageError
from nvembed_deploy.onnx_session import session_options
from nvembed_deploy.runtimes.cpu_quota import bound_cores
from nvembed_deploy.runtimes.launch import fill_rows, plan_launches
from nvembed_deploy.runtimes.onnx_tensorrt import (
    RTX_PROVIDER,
    TENSORRT_FIX,
    check_plugin,
    graph_and_context,
    load_gpu_libraries,
    profile_of,
    rtx_device,
    rtx_options,
    tensorrt_options,
)
from nvembed_deploy.runtimes.protocol import INPUTS, OUTPUT, RuntimeOptions, closed
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch

_CPU, _CUDA, _TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
_PROVIDERS = {
    "cpu": (_CPU,),
    "cuda": (_CUDA, _CPU),
    "tensorrt": (_TENSORRT, _CUDA, _CPU),
    "tensorrt-rtx": (RTX_PROVIDER, _CPU),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Target:
    """Where to run: the device, its providers (the wanted one first), whether it was asked for."""

    device: str
    providers: tuple[str, ...]
    is_named: bool

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def index(self) -> int:
        """The device's number."""
        return int(self.device.partition(":")[2] or 0)


_CPU_TARGET = _Target("cpu", (_CPU,), is_named=False)


class OnnxRuntime:
    """A graph loaded into one ONNX Runtime session."""

    name = "onnx"
    packs = False
    workers = 1

    def __init__(self, artifact: Artifact, options: RuntimeOptions) -> None:
        """Load the artifact's graph.

        Raises:
            MissingPackageError: this build of ONNX Runtime lacks the provider.
            HardwareError: the device asked for by name cannot be used.
            ArtifactError: ONNX Runtime refuses the graph.
        """
        self.max_tokens = artifact.manifest.spec.backbone.max_positions
        target = _fit(artifact, _target(options))
        session = _open_session(artifact, target, options)
        if session.get_providers()[0] != target.providers[0]:
            _report_fallback(target, f"ONNX Runtime uses {session.get_providers()[0]} instead")
            target = _CPU_TARGET
        _check_signature(artifact, session)
        self.device = target.device
        self._profiles = (profile_of(artifact),) if target.kind.startswith("tensorrt") else ()
        self._run_options = _run_options(target, options)
        self._session: ort.InferenceSession | None = session

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D] of a right-padded batch."""
        if self._session is None:
            raise closed()
        arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        feed = dict(zip(INPUTS, arrays, strict=True))
        if self._profiles:
            return self._embed_in_profile(self._session, feed)
        return self._run(self._session, feed)

    def _embed_in_profile(
        self, session: ort.InferenceSession, feed: dict[str, NDArray[np.int64]]
    ) -> NDArray[np.float32]:
        """Run a batch as TensorRT takes it: padded, and in parts where it is too large."""
        shape, rows = Shape(*feed[INPUTS[0]].shape), []
        for launch in plan_launches(shape, self._profiles):
            padded = {
                name: fill_rows(np.empty(launch.shape, np.int64), array_BS, launch)
                for name, array_BS in feed.items()
            }
            rows.append(self._run(session, padded)[: launch.stop - launch.start])
        return np.concatenate(rows)

    def _run(
        self, session: ort.InferenceSession, feed: dict[str, NDArray[np.int64]]
    ) -> NDArray[np.float32]:
        (embedding_BD,) = session.run([OUTPUT], feed, self._run_options)
        return np.asarray(embedding_BD, dtype=np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = None


def open_runtime(artifact: Artifact, options: RuntimeOptions) -> OnnxRuntime:
    """Load an artifact into ONNX Runtime (a row of `RUNTIMES`)."""
    return OnnxRuntime(artifact, options)


def _target(options: RuntimeOptions) -> _Target:
    """Decide where to run.

    Raises:
        InputError: the device's name is not known.
        MissingPackageError: this build of ONNX Runtime lacks the provider.
        HardwareError: there is no such GPU.
    """
    available = ort.get_available_providers()
    device = options.device or _default_device(options.providers, available)
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or (index and not index.isdecimal()):
        raise InputError(
            f"device is {device!r}, expected cpu, cuda, cuda:N, tensorrt, tensorrt:N, "
            "tensorrt-rtx or tensorrt-rtx:N",
            "leave it out to take a GPU where there is one",
        )
    providers = options.providers or _PROVIDERS[kind]
    if providers[0] == RTX_PROVIDER:
        check_plugin()
    elif providers[0] not in available:
        raise MissingPackageError(
            f"{providers[0]} was asked for; this onnxruntime has {', '.join(available)}",
            "pip install 'nvembed-deploy[onnx-gpu]' for NVIDIA GPUs",
        )
    if kind != "cpu" and int(index or 0) >= (num_gpus := _count_gpus()):
        raise HardwareError(
            f"device {device!r} was asked for; the NVIDIA driver shows {num_gpus} GPUs",
            "choose another device, or check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    is_named = options.device is not None or options.providers is not None
    return _Target("cpu" if kind == "cpu" else f"{kind}:{index or 0}", providers, is_named)


def _fit(artifact: Artifact, target: _Target) -> _Target:
    """Return where the graph can run.

    Raises:
        HardwareError: it cannot run where it was asked to.
    """
    if artifact.manifest.precision is Precision.BF16 and target.device == "cpu":
        raise HardwareError(
            f"{artifact.path} is bf16, for which ONNX Runtime has no kernels on the CPU",
            "use runtime='torch' or a GPU, or export the checkpoint with --precision fp16 or fp32",
        )
    if not artifact.manifest.is_for_cpu:
        return target
    if target.device != "cpu" and target.is_named:
        raise HardwareError(
            f"{artifact.path} is written for the CPU, and device {target.device!r} was asked for",
            "use device='cpu', or export the checkpoint with --precision int8 or fp16",
        )
    return _CPU_TARGET


def _default_device(providers: tuple[str, ...] | None, available: list[str]) -> str:
    has_gpu = _CUDA in available and _count_gpus() > 0
    wanted = providers[0] if providers else (_CUDA if has_gpu else _CPU)
    return next((kind for kind, chain in _PROVIDERS.items() if chain[0] == wanted), "cpu")


def _count_gpus() -> int:
    """Ask the NVIDIA driver; ONNX Runtime lists the CUDA provider on machines without a GPU too."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _open_session(
    artifact: Artifact, target: _Target, options: RuntimeOptions
) -> ort.InferenceSession:
    session = session_options(is_for_cpu=artifact.manifest.is_for_cpu)
    session.enable_cpu_mem_arena = options.use_arena
    session.enable_mem_pattern = False  # it plans for one shape; ours vary with each batch
    session.intra_op_num_threads = options.threads or bound_cores() or 0  # 0: its own choice
    graph, settings = graph_and_context(artifact, target.kind, options.context_file)
    for key, value in settings.items():
        session.add_session_config_entry(key, value)
    if target.providers[0] == RTX_PROVIDER:
        device = rtx_device(target.index)
        session.add_provider_for_devices([device], rtx_options(artifact))
    if target.providers[0] in (_CUDA, _TENSORRT):
        load_gpu_libraries(tensorrt=target.providers[0] == _TENSORRT)
    try:
        return ort.InferenceSession(
            graph,
            session,
            providers=_providers(artifact, target, options),
            enable_fallback=0,  # it prints and goes on with the CPU; `_report_fallback` decides
        )
    except Exception as error:  # ONNX Runtime's errors share no other base
        if target.device != "cpu":
            _report_fallback(target, str(error))
            return _open_session(artifact, _CPU_TARGET, options)
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {artifact.graph}: {error}",
            "check the artifact with verify='full', and update onnxruntime: opset 23 needs 1.23",
        ) from error


def _providers(
    artifact: Artifact, target: _Target, options: RuntimeOptions
) -> list[tuple[str, dict[str, str]]] | None:
    """Return each provider with its options; None where the session's options hold the plugin."""
    if target.providers[0] == RTX_PROVIDER:
        return None
    device = {"device_id": str(target.index)}
    # Exact growth: doubling would reserve up to twice the largest batch. And float32 is float32.
    cuda = {**device, "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    if options.memory_limit_bytes is not None:
        cuda["gpu_mem_limit"] = str(options.memory_limit_bytes)
    known = {_CUDA: cuda}
    if target.providers[0] == _TENSORRT:
        known[_TENSORRT] = device | tensorrt_options(artifact, options.context_file)
    return [(provider, known.get(provider, {})) for provider in target.providers]


def _report_fallback(target: _Target, reason: str) -> None:
    """Refuse to run elsewhere than on a named device; warn where none was named.

    Raises:
        HardwareError: the device was asked for by name.
    """
    problem = f"{target.providers[0]} did not start on {target.device}: {reason}"
    fix = "check that the CUDA and cuDNN libraries match this onnxruntime-gpu"
    if target.providers[0] == _TENSORRT:
        fix = f"{fix}; {TENSORRT_FIX}"
    if target.is_named:
        raise HardwareError(problem, fix)
    logger.warning("%s; running on the CPU. %s", problem, fix)


def _run_options(target: _Target, options: RuntimeOptions) -> ort.RunOptions:
    run_options = ort.RunOptions()
    index = target.device.partition(":")[2]
    if options.shrink_arena and (index or options.use_arena):
        arena = f"gpu:{index}" if index else "cpu:0"
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
    return run_options


def _check_signature(artifact: Artifact, session: ort.InferenceSession) -> None:
    got = {node.name for node in session.get_inputs()}, {n.name for n in session.get_outputs()}
    if got != (set(INPUTS), {OUTPUT}):
        raise ArtifactError(
            f"{artifact.graph}: got inputs {sorted(got[0])} and outputs {sorted(got[1])}, "
            f"expected {sorted(INPUTS)} and ['{OUTPUT}']",
            "export the checkpoint again with this version",
        )
