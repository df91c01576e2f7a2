"""This file owns the whole model in torch: backbone, pooler and the unit-length output.

It is the oracle that exported graphs are compared with, and what training trains.
Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.model.backbone import Backbone
from nvembed_deploy.model.fold import fold_attention
from nvembed_deploy.model.names import BACKBONE
from nvembed_deploy.model.pooler import (
    EosPooler,
    FoldedLatentPooler,
    LatentPooler,
    MeanPooler,
    SelfAttentionPooler,
)
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import ModelSpec, PoolerForm, Pooling


class NVEmbed(nn.Module):
    """An NV-Embed model. `pooler_form` chooses the faithful or the folded latent pooler."""

    def __init__(self, spec: ModelSpec, pooler_form: PoolerForm = PoolerForm.FAITHFUL) -> None:
        """Build the module with uninitialised weights of the default dtype."""
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec.backbone)
        self.pooler = _pooler(spec, pooler_form)

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        attention_mask_BS: torch.Tensor,
        pool_mask_BS: torch.Tensor,
    ) -> torch.Tensor:
        """Return embedding_BD, float32, of length 1.

        Args:
            input_ids_BS: int64 [B, S].
            attention_mask_BS: [B, S], nonzero = may be attended.
            pool_mask_BS: [B, S], nonzero = averaged.
        """
        hidden_BSD = self.backbone(input_ids_BS, attention_mask_BS)
        return functional.normalize(self.pooler(hidden_BSD, pool_mask_BS).float(), dim=-1)


def _pooler(spec: ModelSpec, form: PoolerForm) -> nn.Module:
    if spec.pooler.pooling is Pooling.MEAN:
        return MeanPooler()
    if spec.pooler.pooling is Pooling.EOS:
        return EosPooler()
    if spec.pooler.pooling is Pooling.SELF_ATTENTION:
        return SelfAttentionPooler(spec.pooler, spec.backbone)
    kind = LatentPooler if form is PoolerForm.FAITHFUL else FoldedLatentPooler
    return kind(spec.pooler, spec.backbone)


def module_key(name: str) -> str:
    """Translate one of our tensor names into this module's state-dict key."""
    if name.startswith(BACKBONE):
        return f"{BACKBONE}decoder.{name.removeprefix(BACKBONE)}"
    return name


def build_model(
    spec: ModelSpec,
    pooler_form: PoolerForm = PoolerForm.FAITHFUL,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> NVEmbed:
    """Build the model on a device, in evaluation mode, its weights uninitialised."""
    with torch.device("meta"):
        model = NVEmbed(spec, pooler_form)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    _reset_rotary(model)
    return model


def load_model(
    weights: Weights,
    pooler_form: PoolerForm = PoolerForm.FAITHFUL,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> NVEmbed:
    """Build the model and fill it tensor by tensor; nothing is held twice.

    Raises:
        CheckpointError: a tensor is not finite.
    """
    model = build_model(weights.spec, pooler_form, dtype, device)
    state = model.state_dict()
    for name in weights.shapes:
        if module_key(name) in state:
            state[module_key(name)].copy_(torch.from_numpy(weights.read_float32(name)))
    if isinstance(model.pooler, FoldedLatentPooler):
        folded = fold_attention(weights)
        model.pooler.scores.weight.copy_(torch.from_numpy(folded.scores_DX.T))
        model.pooler.values.weight.copy_(torch.from_numpy(folded.values_XD.T))
    return model


def _reset_rotary(model: NVEmbed) -> None:
    """Compute the rotary frequencies, which are no weights and are lost on the meta device.

    In float32 whatever the model's dtype: `.to(float16)` would round them.
    Source: arXiv 2104.09864 section 3.4.2: theta_i = base^(-2i / head_width).
    """
    spec = model.spec.backbone
    rotary: Any = model.backbone.decoder.rotary_emb  # torch types its buffers as Buffer only
    device = rotary.inv_freq.device
    exponent = torch.arange(0, spec.head_width, 2, dtype=torch.int64, device=device).float()
    rotary.inv_freq = 1.0 / (spec.rope_theta ** (exponent / spec.head_width))
    rotary.original_inv_freq = rotary.inv_freq
