"""This file owns sentence-transformers around the same torch model, as a module of its own.

`encode` is theirs: sorting by characters, batches of 32, padding, transfer. Shapes: B batch,
S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - only the worker of such a side imports this file
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from nvembed_deploy.bench.competitors.device import torch_device
from nvembed_deploy.bench.competitors.features import Tokenization
from nvembed_deploy.bench.competitors.weights import load
from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject
from nvembed_deploy.model.nvembed import NVEmbed


class NVEmbedModule(InputModule):
    """The model as sentence-transformers' first and only module: texts to unit rows."""

    def __init__(self, model: NVEmbed, tokenization: Tokenization) -> None:
        """Take a loaded model."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self._tokenization = tokenization
        self.max_seq_length = tokenization.spec.max_tokens

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        **_options: Any,  # noqa: ANN401 - theirs
    ) -> dict[str, Any]:
        """Tokenise one batch."""
        features = self._tokenization.features([str(text) for text in inputs], prompt or "")
        return {name: torch.from_numpy(array) for name, array in features.items()}

    def forward(self, features: dict[str, Any], **_options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Add `sentence_embedding`, [B, D]."""
        masks = (features[name] for name in ("input_ids", "attention_mask", "pool_mask"))
        return features | {"sentence_embedding": self.model(*masks)}

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.model.spec.backbone.hidden_size

    def save(self, output_path: str, *_args: Any, **_options: Any) -> None:  # noqa: ANN401 - theirs
        """Refuse: the weights are a checkpoint's."""
        raise NotImplementedError(f"not saved to {output_path}: this module is for measuring")


def open_default(side: Side) -> Subject:
    """Open it as it comes: float32."""
    return _open(side, torch.float32, "fp32")


def open_best(side: Side) -> Subject:
    """Open it in bfloat16."""
    return _open(side, torch.bfloat16, "bf16")


def _open(side: Side, dtype: torch.dtype, dtype_name: str) -> Subject:
    folder, device = Path(side.path), torch_device(side)
    tokenization = Tokenization(folder)
    module = NVEmbedModule(load(folder, dtype, device), tokenization)
    model = SentenceTransformer(modules=[module], device=str(device))

    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        prompt = tokenization.prefix(instruction) or None
        rows_ND = model.encode(texts, prompt=prompt, show_progress_bar=False)
        return np.asarray(rows_ND, dtype=np.float32)

    facts = {"runtime": "sentence-transformers", "device": str(device), "dtype": dtype_name}
    return Subject(encode, tokenization.lengths, facts)
