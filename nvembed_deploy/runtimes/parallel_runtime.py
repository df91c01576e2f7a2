"""This file owns several runtimes of one model as one: each batch goes to the next that is free.

Data parallel: every device holds the whole model. Batches are computed in threads, which overlap
because torch, ONNX Runtime and CUDA let go of Python while they work.
"""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.runtimes.protocol import Runtime
from nvembed_deploy.text import Batch


class ParallelRuntime:
    """Runtimes of the same model, each on a device of its own."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        """Take them over; this runtime closes them."""
        self._runtimes = tuple(runtimes)
        self._free: SimpleQueue[Runtime] = SimpleQueue()
        for runtime in self._runtimes:
            self._free.put(runtime)

    @property
    def name(self) -> str:
        """The name all of them have."""
        return self._runtimes[0].name

    @property
    def device(self) -> str:
        """Where they run: "cuda:0,cuda:1"."""
        return ",".join(runtime.device for runtime in self._runtimes)

    @property
    def packs(self) -> bool:
        """Whether padding costs them nothing."""
        return all(runtime.packs for runtime in self._runtimes)

    @property
    def workers(self) -> int:
        """How many batches they compute at once."""
        return len(self._runtimes)

    @property
    def max_tokens(self) -> int:
        """The longest sequence that all of them take."""
        return min(runtime.max_tokens for runtime in self._runtimes)

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return L2-normalised embeddings [B, D]; waits until a runtime is free."""
        runtime = self._free.get()
        try:
            return runtime.embed(batch)
        finally:
            self._free.put(runtime)

    def close(self) -> None:
        """Close all of them."""
        for runtime in self._runtimes:
            runtime.close()
