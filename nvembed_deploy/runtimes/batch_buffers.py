"""This file owns the memory that a batch passes through on its way to the GPU and back.

It is allocated once, for the largest batch of any profile: a recorded CUDA graph holds addresses,
so that they must never change. Legend: B batch, S sequence, D hidden; a trailing N is flat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.runtimes.cuda_memory import Gpu
from nvembed_deploy.runtimes.launch import Launch, fill_rows
from nvembed_deploy.runtimes.protocol import INPUTS, OUTPUT
from nvembed_deploy.text import Batch

_ID_BYTES, _ROW_ITEM_BYTES = 8, 4


class BatchBuffers:
    """Page-locked host memory and GPU memory for the three inputs and the embeddings."""

    def __init__(self, gpu: Gpu, profiles: Sequence[Profile], width: int) -> None:
        """Allocate for the largest batch of `profiles` and embeddings of `width` numbers."""
        self._gpu, self._width = gpu, width
        tokens = max(profile.max.batch * profile.max.sequence for profile in profiles)
        texts = max(profile.max.batch for profile in profiles)
        self._host_N = {name: gpu.pinned(tokens, np.int64) for name in INPUTS}
        self._rows_N = gpu.pinned(texts * width, np.float32)
        self.addresses = {name: gpu.allocate(tokens * _ID_BYTES) for name in INPUTS}
        self.addresses[OUTPUT] = gpu.allocate(texts * width * _ROW_ITEM_BYTES)

    def fill(self, batch: Batch, launch: Launch) -> None:
        """Write a launch's rows of a batch into host memory, padded to its shape."""
        arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        for name, array_BS in zip(INPUTS, arrays, strict=True):
            fill_rows(self._view(name, launch.shape), array_BS, launch)

    def upload(self, shape: Shape) -> None:
        """Order the inputs' copies to the GPU."""
        for name in INPUTS:
            self._gpu.upload(self.addresses[name], self._view(name, shape))

    def download(self, num_texts: int) -> None:
        """Order the embeddings' copy to the host."""
        self._gpu.download(self._rows_N[: num_texts * self._width], self.addresses[OUTPUT])

    def rows(self, num_texts: int) -> NDArray[np.float32]:
        """Return the embeddings [B, D] that were copied; the next download writes over them."""
        rows_BD: NDArray[np.float32] = self._rows_N[: num_texts * self._width].reshape(
            num_texts, self._width
        )
        return rows_BD

    def _view(self, name: str, shape: Shape) -> NDArray[np.int64]:
        view_BS: NDArray[np.int64] = self._host_N[name][: shape.batch * shape.sequence].reshape(
            shape
        )
        return view_BS
