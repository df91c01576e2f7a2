"""This file owns running the packed model: batches to rows, and short ones by replay on a GPU.

A batch of few tokens is bound by launching kernels, not by arithmetic; so a few shapes are recorded
as CUDA graphs, batches are filled up to them, and replayed. Longer batches run at their own size.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError
from nvembed_deploy.model.packed.attention import reads_cuts
from nvembed_deploy.model.packed.batch import PackedBatch, widen
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.model import PackedModel
from nvembed_deploy.runtimes.protocol import closed
from nvembed_deploy.runtimes.replay_cache import ReplayCache
from nvembed_deploy.spec import ModelSpec, Pooling
from nvembed_deploy.text import Batch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

TOKEN_SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of recorded shapes: at most half again what a batch of them holds. Beyond the last one
arithmetic hides the launches: they take the host 8 to 10 ms for 32 layers, and 512 tokens of a 7B
model the GPU 10 ms at 700 TFLOP/s (computed, not measured)."""
TEXT_SIZES = (1, 2, 4, 8, 16, 32)

_ONE_CAPTURE = threading.Lock()
"""One capture at a time in a process is PyTorch's rule."""

logger = logging.getLogger(__name__)

Replay = Callable[[], torch.Tensor]
"""Runs the recorded shape on the tensors it was recorded with."""


def size_for(count: int, sizes: tuple[int, ...]) -> int | None:
    """Return the smallest of `sizes` that holds `count`, or None."""
    return next((size for size in sizes if size >= count), None)


@dataclass(frozen=True)
class Recording:
    """One shape: the tensors it reads, and how to run it."""

    batch: PackedBatch
    replay: Replay

    def run(self, batch: PackedBatch) -> torch.Tensor:
        """Return embedding_BD of a batch of this shape."""
        for kept, given in zip(self.batch.tensors(), batch.tensors(), strict=True):
            kept.copy_(given, non_blocking=True)
        return self.replay()


class PackedRuntime:
    """The packed model on one device. Calls of other threads wait: they share recorded tensors."""

    name = "torch"
    packs = True
    workers = 1

    def __init__(
        self,
        model: PackedModel,
        *,
        graphs: int = 0,
        record: Callable[[PackedModel, PackedBatch], Replay] | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            model: on its device.
            graphs: most shapes that are recorded.
            record: how; CUDA graphs if left out.
        """
        self._model: PackedModel | None = model
        self._device = model.device
        self._recordings: ReplayCache[Recording] = ReplayCache(graphs)
        self._record = record or CudaGraphs(model.device).record
        self._lock, self._process = threading.Lock(), os.getpid()
        self.max_tokens = model.spec.backbone.max_positions

    @classmethod
    def load(cls, spec: ModelSpec, loader: Loader, graphs: int) -> Self:
        """Load a model; shapes are recorded only where attention reads texts' boundaries itself.

        Elsewhere it cuts texts by lengths on the host, which a recording would freeze.
        """
        is_replayable = reads_cuts(loader.device, loader.dtype, spec.backbone.head_width)
        return cls(PackedModel.load(spec, loader), graphs=graphs if is_replayable else 0)

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", ..."""
        return str(self._device)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D], float32, of a right-padded batch.

        Raises:
            InputError: the runtime is closed, or this process was forked from the one that loaded
                it: torch's threads and CUDA are not in it, and it would wait for them forever.
        """
        needs_more = self._device.type != "cpu" or torch.get_num_threads() > 1
        if needs_more and os.getpid() != self._process:
            raise InputError(
                f"the encoder was opened in process {self._process}, of which this is a fork",
                "open it in the process that uses it; or take 'spawn', or on a processor threads=1",
            )
        with self._lock:
            if self._model is None:
                raise closed()
            packed = self._model.pack(batch)
            embedding_BD = self._replayed(packed, self._model)
            if embedding_BD is None:
                embedding_BD = self._model(packed.to(self._device))
            result: NDArray[np.float32] = embedding_BD[: batch.num_texts].cpu().numpy()
            return result

    def _replayed(self, packed: PackedBatch, model: PackedModel) -> torch.Tensor | None:
        """Return the embeddings by replay, if the batch's shape is or can now be recorded."""
        num_tokens = size_for(len(packed.ids_T), TOKEN_SIZES)
        num_texts = size_for(packed.num_texts, TEXT_SIZES)
        sees_itself = model.spec.pooler.pooling is Pooling.SELF_ATTENTION
        if num_tokens is None or num_texts is None or sees_itself:
            return None
        key = (num_tokens, num_texts)
        recording = self._recordings.get(key)
        if recording is None and not self._recordings.wants(key):
            return None
        wide = widen(packed, num_tokens, num_texts)
        if recording is None:
            kept = wide.to(model.device)
            try:
                recording = Recording(kept, self._record(model, kept))
            except RuntimeError as error:  # of CUDA: most often there is no memory left for it
                self._recordings.stop()
                logger.warning("%s is not recorded, nor will others be: %s", key, error)
                return None
            self._recordings.keep(key, recording)
        return recording.run(wide)

    def close(self) -> None:
        """Drop the model and give the GPU's memory back."""
        with self._lock:
            self._recordings.clear()
            self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class CudaGraphs:
    """Records a model's shapes, all on one stream and in one pool of memory.

    Shapes are replayed one after another and their outputs are kept, so that what lies between
    may share memory; a stream of its own for each would hold a cuBLAS workspace of 32 MiB.
    """

    def __init__(self, device: torch.device) -> None:
        """Take nothing of the device before the first recording."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: _POOL_HANDLE | None = None

    def record(self, model: PackedModel, batch: PackedBatch) -> Replay:
        """Record the model on these tensors as a CUDA graph.

        Source: PyTorch docs, notes/cuda.html, "CUDA Graphs": warm up on a side stream, then
        capture. Without a stream given `torch.cuda.graph` captures on the process's first GPU,
        whichever the model is on; "thread_local" lets the threads of other GPUs work meanwhile.

        Raises:
            RuntimeError: CUDA cannot record it; the thread is on its own stream again.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            model(batch)
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with _ONE_CAPTURE, torch.cuda.device(self._device), capture:
                embedding_BD = model(batch)
        except RuntimeError:
            torch.cuda.set_stream(before)  # a capture that fails to end does not leave its own
            raise

        def replay() -> torch.Tensor:
            graph.replay()
            return embedding_BD

        return replay
