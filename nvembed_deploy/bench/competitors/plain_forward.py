"""This file owns the plain way of model cards: transformers' forward, padded, in the given order.

Weights are float32 under autocast (float16 on a GPU, bfloat16 on a processor), the latents'
keys and values are projected again for each text of a batch, and texts are not sorted.
Shapes: B batch, S sequence, D hidden, L latents, H heads, K head width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch  # noqa: TID253 - only the worker of such a side imports this file
from numpy.typing import NDArray
from torch.nn import functional  # noqa: TID253

from nvembed_deploy.bench.competitors.device import torch_device
from nvembed_deploy.bench.competitors.features import BATCH, Tokenization
from nvembed_deploy.bench.competitors.weights import load
from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject
from nvembed_deploy.model.pooler import LatentPooler


class PerTextLatentPooler(LatentPooler):
    """The latent pooler whose latents are repeated for each text, then normalised and projected."""

    def attend(self, normal_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Attend to each text's own copy of the latents."""
        heads = (self.spec.num_heads, self.spec.head_width)
        latents_BLD = self.latents.expand(len(normal_BSD), -1, -1).contiguous()
        key, value = self.key_value(self.latent_norm(latents_BLD)).chunk(2, dim=-1)
        query_BHSK, key_BHLK, value_BHLK = (
            t.unflatten(-1, heads).transpose(1, 2) for t in (self.query(normal_BSD), key, value)
        )
        mixed_BHSK = functional.scaled_dot_product_attention(query_BHSK, key_BHLK, value_BHLK)
        mixed: torch.Tensor = self.output(mixed_BHSK.transpose(1, 2).flatten(2))
        return mixed


def open_plain(side: Side) -> Subject:
    """Load the model and its tokenizer."""
    folder, device = Path(side.path), torch_device(side)
    tokenization = Tokenization(folder)
    model = load(folder, torch.float32, device)
    if isinstance(model.pooler, LatentPooler):
        model.pooler.__class__ = PerTextLatentPooler
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16

    def forward(texts: list[str], prefix: str) -> NDArray[np.float32]:
        features = tokenization.features(texts, prefix)
        tensors = (torch.from_numpy(array).to(device) for array in features.values())
        with torch.inference_mode(), torch.autocast(device.type, dtype):
            rows_BD: NDArray[np.float32] = model(*tensors).float().cpu().numpy()
        return rows_BD

    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        prefix = tokenization.prefix(instruction)
        starts = range(0, len(texts), BATCH)
        return np.concatenate([forward(texts[s : s + BATCH], prefix) for s in starts])

    facts = {"runtime": "transformers", "device": str(device)}
    dtype_name = "bf16" if dtype is torch.bfloat16 else "fp16"
    return Subject(encode, tokenization.lengths, facts | {"dtype": dtype_name})
