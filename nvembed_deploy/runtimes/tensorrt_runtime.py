"""This file owns running an engine: TensorRT's and TensorRT for RTX's, on one NVIDIA GPU.

choose an engine -> load it -> for each batch: launches -> fill, upload, run, download.
A small shape that comes again gets a context of its own, which records it as a CUDA graph (for full
TensorRT it is recorded here, copies included) and replays it.
Legend: B batch, D hidden.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.artifact import Artifact
from nvembed_deploy.engine_record import EngineRecord, Flavour, Profile, Shape
from nvembed_deploy.errors import ArtifactError, InputError, NVEmbedError
from nvembed_deploy.runtimes.batch_buffers import BatchBuffers
from nvembed_deploy.runtimes.cuda_memory import Gpu, gpu_index
from nvembed_deploy.runtimes.device_array import DeviceArray, check_holder, device_array
from nvembed_deploy.runtimes.engine_choice import Host
from nvembed_deploy.runtimes.engine_request import Damage, find_another, find_engine
from nvembed_deploy.runtimes.launch import Launch, exact_profile, plan_launches
from nvembed_deploy.runtimes.loaded_engine import Context, LoadedEngine
from nvembed_deploy.runtimes.protocol import INPUTS, OUTPUT, RuntimeOptions, closed
from nvembed_deploy.runtimes.replay_cache import ReplayCache
from nvembed_deploy.tensorrt_api import Api, load_api
from nvembed_deploy.text import Batch

_IDS, _ROWS = "<i8", "<f4"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """What is kept of a shape that comes again.

    Attributes:
        context: runs this shape alone, so that what was recorded of it stays true.
        graph: CUDA's, copies included; None where the context records by itself.
    """

    context: Context
    graph: Any


class TensorRTRuntime:
    """An engine on one GPU. One batch at a time: calls of other threads wait."""

    packs = False
    workers = 1

    def __init__(
        self,
        engine: LoadedEngine,
        gpu: Gpu,
        *,
        artifact: Artifact,
        record: EngineRecord,
        replays: int,
    ) -> None:
        """Take a loaded engine and its GPU; both belong to this runtime, which closes them.

        Args:
            engine: the engine.
            gpu: where it was loaded.
            artifact: whose it is.
            record: what the manifest says of it.
            replays: most CUDA graphs to keep; 0 records none.
        """
        spec = artifact.manifest.spec
        self.name, self.device = record.flavour.value, f"cuda:{gpu.index}"
        self._profiles: tuple[Profile, ...] = record.profiles
        longest = max(profile.max.sequence for profile in record.profiles)
        self.max_tokens = min(spec.text.max_tokens, spec.backbone.max_positions, longest)
        self._width = spec.backbone.hidden_size
        self._gpu: Gpu | None = gpu
        self._engine = engine
        engine.use_scratch(gpu.allocate(engine.scratch_bytes))
        self._buffers = BatchBuffers(gpu, record.profiles, self._width)
        self._contexts: dict[int, Context] = {}
        self._replays: ReplayCache[Recording] = ReplayCache(replays)
        self._lock = threading.Lock()

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D] of a right-padded batch."""
        shape = Shape(*batch.input_ids_BS.shape)
        rows_BD = np.empty((shape.batch, self._width), dtype=np.float32)
        with self._on_gpu() as gpu:
            for launch in plan_launches(shape, self._profiles):
                self._buffers.fill(batch, launch)
                self._launch(gpu, launch)
                gpu.wait()
                rows_BD[launch.start : launch.stop] = self._buffers.rows(launch.stop - launch.start)
        return rows_BD

    def embed_on_gpu(self, *inputs: Any) -> DeviceArray:  # noqa: ANN401 - of any library
        """Return the embeddings of arrays that lie on the GPU, without a copy of either.

        Args:
            *inputs: input_ids, attention_mask, pool_mask; each int64 [B, S], contiguous.

        Returns:
            float32 [B, D] on the GPU, complete. The next call writes over it.

        Raises:
            InputError: an array cannot be used, or no profile holds its shape as it is.
        """
        with self._on_gpu() as gpu:
            given = zip(INPUTS, inputs, strict=True)
            arrays = {name: device_array(array, gpu.stream, name) for name, array in given}
            shape = _common_shape(arrays)
            for name, array in arrays.items():
                check_holder(array, gpu, name)
            for stream in {array.stream for array in arrays.values()} - {None}:
                gpu.wait(stream)
            profile = self._profile_for(shape)
            addresses = {name: array.pointer for name, array in arrays.items()}
            output = self._buffers.addresses[OUTPUT]
            context = self._context(gpu, profile)
            context.prepare(shape, {**addresses, OUTPUT: output})
            context.run(gpu.stream)
            gpu.wait()
        return DeviceArray(output, (shape.batch, self._width), _ROWS, owner=self)

    def close(self) -> None:
        """Free the GPU's memory, and keep the kernels that were compiled at run time."""
        with self._lock:
            if self._gpu is None:
                return
            gpu, self._gpu = self._gpu, None
            with gpu.current():
                gpu.wait()
                try:
                    self._engine.save_cache()
                finally:
                    self._free(gpu)

    def __del__(self) -> None:
        """Close what nobody closed: an encoder that is dropped keeps no gigabytes."""
        with suppress(Exception):  # it was never whole, or Python ends
            self.close()

    def _free(self, gpu: Gpu) -> None:
        """Free what was recorded, then the engine, then the memory that both used."""
        for graph in [kept.graph for kept in self._replays.clear()]:
            gpu.forget(graph)
        self._contexts.clear()
        del self._engine
        gpu.close()

    @contextmanager
    def _on_gpu(self) -> Iterator[Gpu]:
        """Yield the GPU, to one thread at a time."""
        with self._lock:
            if self._gpu is None:
                raise closed()
            with self._gpu.current():
                yield self._gpu

    def _launch(self, gpu: Gpu, launch: Launch) -> None:
        """Order a launch: replay it, or run it, and record it where it will come again."""
        key = (launch.profile, launch.shape)
        kept = self._replays.get(key)
        if kept is not None and kept.graph is not None:
            gpu.replay(kept.graph)
            return
        if kept is not None:
            self._order(gpu, kept.context, launch.shape)
            return
        comes_again = launch.is_repeated and self._replays.wants(key)
        own = self._recording_context(gpu, launch.profile) if comes_again else None
        self._order(gpu, own or self._context(gpu, launch.profile), launch.shape)
        if own is not None:
            self._record(gpu, launch, own)

    def _recording_context(self, gpu: Gpu, profile: int) -> Context | None:
        """Return a context for one shape alone; None where the GPU has no room for it."""
        try:
            return self._engine.context(profile, gpu.stream, records=True)
        except NVEmbedError as error:
            self._stop_recording(error)
            return None

    def _record(self, gpu: Gpu, launch: Launch, context: Context) -> None:
        """Keep the context that has just run a launch, with a CUDA graph of that run.

        A context must have run a shape once, and been told of shape and addresses, before it is
        recorded. Source: TensorRT's page on CUDA graphs.
        """
        graph = None
        if not self._engine.records_itself:
            gpu.wait()
            try:
                graph = gpu.record(lambda: self._run(gpu, context, launch.shape))
            except NVEmbedError as error:  # the batch itself has run
                self._stop_recording(error)
                return
        key = (launch.profile, launch.shape)
        replaced = self._replays.keep(key, Recording(context, graph))
        if replaced is not None:
            gpu.wait()  # it may still be running a launch of this batch
            gpu.forget(replaced.graph)

    def _stop_recording(self, error: NVEmbedError) -> None:
        logger.warning("no further shapes are recorded as CUDA graphs: %s", error.problem)
        self._replays.stop()

    def _order(self, gpu: Gpu, context: Context, shape: Shape) -> None:
        """Bind the next batch's shape and memory, and order its run."""
        context.prepare(shape, self._buffers.addresses)
        self._run(gpu, context, shape)

    def _run(self, gpu: Gpu, context: Context, shape: Shape) -> None:
        """Order the copies and the run; the whole padded batch comes back."""
        self._buffers.upload(shape)
        context.run(gpu.stream)
        self._buffers.download(shape.batch)

    def _context(self, gpu: Gpu, profile: int) -> Context:
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.context(profile, gpu.stream)
        return self._contexts[profile]

    def _profile_for(self, shape: Shape) -> int:
        """Return the profile that takes a shape without padding."""
        profile = exact_profile(shape, self._profiles)
        if profile is None:
            raise InputError(
                f"a batch on the GPU is {tuple(shape)}, and no profile takes that as it is: "
                f"{[(tuple(p.min), tuple(p.max)) for p in self._profiles]}",
                "split or pad it, or give embed arrays of the processor",
            )
        return profile


def open_engine(artifact: Artifact, options: RuntimeOptions, flavour: Flavour) -> TensorRTRuntime:
    """Load the engine that fits this machine; compile one if there is none.

    Raises:
        ArtifactError: no engine fits, or one is damaged, and none may be compiled.
        HardwareError: there is no GPU, or the product does not run on it.
        MissingPackageError: the product or CUDA's bindings are not installed.
    """
    gpu = Gpu(gpu_index(options.device))
    try:
        with gpu.current():
            return _find_and_open(artifact, options, flavour, gpu)
    except BaseException:
        gpu.close()
        raise


open_tensorrt = partial(open_engine, flavour=Flavour.TENSORRT)
open_rtx = partial(open_engine, flavour=Flavour.RTX)
"""Rows of `RUNTIMES`."""


def _find_and_open(
    artifact: Artifact, options: RuntimeOptions, flavour: Flavour, gpu: Gpu
) -> TensorRTRuntime:
    api = load_api(flavour)
    host = Host(flavour, api.version, gpu.target, api.targets, gpu.name)
    artifact, name = find_engine(artifact, host, options, gpu.index)
    try:
        return _open(artifact, name, api, gpu, options)
    except ArtifactError as error:
        damage = Damage(artifact, name, error)
        artifact, name = find_another(damage, host, options, gpu.index)
    return _open(artifact, name, api, gpu, options)


def _open(
    artifact: Artifact, name: str, api: Api, gpu: Gpu, options: RuntimeOptions
) -> TensorRTRuntime:
    record, replays = artifact.manifest.engines[name], options.cuda_graphs
    engine = LoadedEngine(api, artifact.path / name, record, artifact.graph)
    return TensorRTRuntime(engine, gpu, artifact=artifact, record=record, replays=replays)


def _common_shape(arrays: dict[str, DeviceArray]) -> Shape:
    """Return the shape of all arrays.

    Raises:
        InputError: they differ, or are not int64 [B, S].
    """
    found = {(array.shape, array.typestr) for array in arrays.values()}
    ((shape, typestr), *others) = found
    if others or typestr != _IDS or len(shape) != len(Shape._fields):
        got = {name: (array.shape, array.typestr) for name, array in arrays.items()}
        raise InputError(f"got {got}, expected three int64 arrays of one shape", "convert them")
    return Shape(*shape)
