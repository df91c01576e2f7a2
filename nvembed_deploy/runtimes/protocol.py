"""This file owns what a runtime is: one graph or model loaded somewhere, `embed(Batch) -> rows`.

A new runtime is one file with `open_runtime(artifact, options) -> Runtime` and one row in
`runtimes.RUNTIMES`. Legend: B batch, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.whole import whole
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch

INPUTS = ("input_ids", "attention_mask", "pool_mask")
OUTPUT = "sentence_embedding"
"""Names of a graph's and an engine's tensors (docs/artifact.md)."""
_MOST_THREADS = 1024
"""ONNX Runtime makes as many as it is told; of 100,000 no signal ends the process."""


@dataclass(frozen=True)
class RuntimeOptions:
    """How to load a runtime. None means the runtime's own choice.

    Attributes:
        device: "cpu", "cuda", "cuda:1"; several, "cuda:0,cuda:1", each hold the model and share the
            batches; for ONNX Runtime also "tensorrt" and "tensorrt-rtx", its
            providers of these names. A device asked for by name is never replaced by another.
        threads: processor threads of one forward pass. None: as many as a container's quota feeds,
            or what the library takes; ONNX Runtime in a process that is bound to some processors as
            many as these have cores.
        use_arena: let ONNX Runtime pool its memory on the processor.
        shrink_arena: give the pool back after each batch. For a GPU shared with others; on a
            processor it costs memory (pieces that cannot be joined: 169 MB where the pool alone
            peaks at 100, for 400 batches of mixed shapes, 2026-11-23).
        memory_limit_bytes: most GPU memory the runtime's pool may take.
        providers: ONNX Runtime execution providers by their own names, instead of `device`.
        dtype: number format of the torch runtime.
        max_batch_tokens: most padded tokens in one batch.
        compiles_engines: let the TensorRT runtimes compile an engine into the artifact where it
            has none for this machine. It takes minutes.
        cuda_graphs: most batch shapes that the TensorRT and torch runtimes keep as CUDA graphs; 0
            for none. Single texts alone have a shape for each of some thirty lengths.
        fp8: let the torch runtime compute products in FP8 (E4M3), a scale for each token and each
            output channel. Needs an NVIDIA GPU of SM 8.9 or later, and `compiles` to be worth it.
        compiles: let the torch runtime compile what lies between products (torch.compile: about a
            minute at the first batches, then fewer and larger kernels).
        context_file: where ONNX Runtime's TensorRT providers keep the graph with its compiled
            engine (an EPContext model): read if it is there, else written.
    """

    device: str | None = None
    threads: int | None = None
    use_arena: bool = True
    shrink_arena: bool = False
    memory_limit_bytes: int | None = None
    providers: tuple[str, ...] | None = None
    dtype: Precision | None = None
    max_batch_tokens: int | None = None
    compiles_engines: bool = True
    cuda_graphs: int = 64
    fp8: bool = False
    compiles: bool = False
    context_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would be taken for something else.

        Raises:
            InputError: a device or a provider has no name, a number is none, or there is no such
                number format.
        """
        if self.device is not None and not _is_device(self.device):
            raise InputError(
                f"device is {self.device!r}, expected a name, or several with commas between",
                "write 'cpu', 'cuda' or 'cuda:1'; str(device) of a torch.device",
            )
        if self.threads is not None:
            whole("threads", self.threads, "leave it out for all there are", most=_MOST_THREADS)
        if self.max_batch_tokens is not None:
            whole("max_batch_tokens", self.max_batch_tokens, "leave it out for the device's own")
        if self.dtype is not None and self.dtype not in list(Precision):
            known = ", ".join(Precision)
            raise InputError(f"dtype is {self.dtype!r}, expected one of {known}", "correct it")
        if isinstance(self.providers, str):
            raise InputError(
                f"providers is {self.providers!r}, expected a tuple of names",
                f"write ({self.providers!r},)",
            )
        if self.memory_limit_bytes is not None:
            whole("memory_limit_bytes", self.memory_limit_bytes, "leave it out for no limit")
        whole("cuda_graphs", self.cuda_graphs, "write 0 for none", least=0)


def _is_device(device: object) -> bool:
    return isinstance(device, str) and all(name.strip() for name in device.split(","))


def closed() -> InputError:
    """Return what a runtime raises when it is used after `close`."""
    return InputError("the encoder is closed", "open it again with load_encoder")


class Runtime(Protocol):
    """What executes a model. The encoder above it does texts, batches and output formats."""

    @property
    def name(self) -> str:
        """Its row in `RUNTIMES`."""
        ...

    @property
    def device(self) -> str:
        """Where it really runs: "cpu", "cuda:0", ..."""
        ...

    @property
    def packs(self) -> bool:
        """Whether padding costs it nothing."""
        ...

    @property
    def workers(self) -> int:
        """How many batches it computes at once."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest sequence it takes."""
        ...

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D] of a right-padded batch."""
        ...

    def close(self) -> None:
        """Free its memory. Calling it twice is fine; `embed` afterwards is not."""
        ...
