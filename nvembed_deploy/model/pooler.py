"""This file owns the poolers as torch modules: latent (faithful, folded) and the paper's others.

Latent attention (arXiv 2405.17428, section 3.1): tokens are the queries; a fixed array of latents
gives keys and values. Then a GEGLU block, each with a residual, then the mean over kept tokens.
Shapes: B batch, S sequence, D hidden, H heads, K head width, L latents, X = H*L.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn
from torch.nn import functional

from nvembed_deploy.spec import BackboneSpec, PoolerSpec


class _AttentionPooler(nn.Module):
    """Attention from the tokens, then a GEGLU block, each with a residual, then the mean."""

    def __init__(self, spec: PoolerSpec, backbone: BackboneSpec) -> None:
        """Build the module with torch's default initialisation."""
        super().__init__()
        hidden, inner = backbone.hidden_size, spec.num_heads * spec.head_width
        self.spec = spec
        self.query_norm = nn.LayerNorm(hidden, eps=spec.layer_norm_eps)
        self.query = nn.Linear(hidden, inner, bias=False)
        self.key_value = nn.Linear(hidden, 2 * inner, bias=False)
        self.output = nn.Linear(inner, hidden, bias=False)
        self.feed_norm = nn.LayerNorm(hidden, eps=spec.layer_norm_eps)
        self.feed_up = nn.Linear(hidden, 2 * spec.feed_width)
        self.feed_down = nn.Linear(spec.feed_width, hidden)

    def forward(self, hidden_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return pooled_BD, not normalised. `pool_mask_BS`: nonzero = averaged."""
        states_BSD = self.attend(self.query_norm(hidden_BSD), pool_mask_BS) + hidden_BSD
        value, gate = self.feed_up(self.feed_norm(states_BSD)).chunk(2, dim=-1)
        states_BSD = self.feed_down(value * functional.gelu(gate)) + states_BSD
        return mean_pool(states_BSD, pool_mask_BS)

    @abstractmethod
    def attend(self, normal_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return the attention of normalised tokens, [B, S, D]."""


class LatentPooler(_AttentionPooler):
    """The pooler as it is trained: queries from tokens, keys and values from the latents."""

    def __init__(self, spec: PoolerSpec, backbone: BackboneSpec) -> None:
        """Build the module with torch's default initialisation."""
        super().__init__(spec, backbone)
        self.latents = nn.Parameter(torch.empty(spec.num_latents, backbone.hidden_size))
        nn.init.normal_(self.latents)
        self.latent_norm = nn.LayerNorm(backbone.hidden_size, eps=spec.layer_norm_eps)

    def attend(self, normal_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Attend to the latents, whatever is pooled."""
        heads = (-1, self.spec.num_heads, self.spec.head_width)
        key, value = self.key_value(self.latent_norm(self.latents)).chunk(2, dim=-1)
        key_HLK, value_HLK = (t.view(heads).transpose(0, 1) for t in (key, value))
        query_BHSK = self.query(normal_BSD).unflatten(-1, heads[1:]).transpose(1, 2)
        mixed_BHSK = functional.scaled_dot_product_attention(
            query_BHSK,
            key_HLK.expand(len(query_BHSK), -1, -1, -1),
            value_HLK.expand(len(query_BHSK), -1, -1, -1),
        )
        mixed: torch.Tensor = self.output(mixed_BHSK.transpose(1, 2).flatten(2))
        return mixed


class SelfAttentionPooler(_AttentionPooler):
    """The latent pooler with the kept tokens in the latents' place (section 3.1's alternative)."""

    def attend(self, normal_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Attend to the pooled tokens."""
        heads = (-1, self.spec.head_width)
        key_BSX, value_BSX = self.key_value(normal_BSD).chunk(2, dim=-1)
        query_BHSK, key_BHSK, value_BHSK = (
            t.unflatten(-1, heads).transpose(1, 2)
            for t in (self.query(normal_BSD), key_BSX, value_BSX)
        )
        # A text with no kept token attends to all, and is zero by the mean.
        kept_BS = (pool_mask_BS != 0) | ~pool_mask_BS.any(-1, keepdim=True)
        mixed_BHSK = functional.scaled_dot_product_attention(
            query_BHSK, key_BHSK, value_BHSK, attn_mask=kept_BS[:, None, None, :]
        )
        mixed: torch.Tensor = self.output(mixed_BHSK.transpose(1, 2).flatten(2))
        return mixed


class FoldedLatentPooler(nn.Module):
    """The same function with keys and values folded into two matrices (see `fold.py`).

    Also exact: the mean over tokens is taken before the last projection, which is linear.
    """

    def __init__(self, spec: PoolerSpec, backbone: BackboneSpec) -> None:
        """Build the module; its weights come from `fold_attention` and the trained pooler."""
        super().__init__()
        hidden = backbone.hidden_size
        self.spec = spec
        self.query_norm = nn.LayerNorm(hidden, eps=spec.layer_norm_eps)
        self.scores = nn.Linear(hidden, spec.num_heads * spec.num_latents, bias=False)
        self.values = nn.Linear(spec.num_heads * spec.num_latents, hidden, bias=False)
        self.feed_norm = nn.LayerNorm(hidden, eps=spec.layer_norm_eps)
        self.feed_up = nn.Linear(hidden, 2 * spec.feed_width)
        self.feed_down = nn.Linear(spec.feed_width, hidden)

    def forward(self, hidden_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return pooled_BD, not normalised. `pool_mask_BS`: nonzero = averaged."""
        scores_BSX = self.scores(self.query_norm(hidden_BSD))
        scores_BSHL = scores_BSX.unflatten(-1, (self.spec.num_heads, self.spec.num_latents))
        states_BSD = self.values(scores_BSHL.softmax(-1).flatten(2)) + hidden_BSD
        value, gate = self.feed_up(self.feed_norm(states_BSD)).chunk(2, dim=-1)
        gated_BF = mean_pool(value * functional.gelu(gate), pool_mask_BS).to(hidden_BSD.dtype)
        pooled_BD: torch.Tensor = self.feed_down(gated_BF) + mean_pool(states_BSD, pool_mask_BS)
        # A text with no kept token gives zeros, not the projection's bias.
        return pooled_BD * pool_mask_BS.any(-1, keepdim=True)


class MeanPooler(nn.Module):
    """The plain mean over the kept tokens."""

    def forward(self, hidden_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return pooled_BD, not normalised. `pool_mask_BS`: nonzero = averaged."""
        return mean_pool(hidden_BSD, pool_mask_BS)


class EosPooler(nn.Module):
    """The state of the last kept token: EOS."""

    def forward(self, hidden_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
        """Return pooled_BD, not normalised. `pool_mask_BS`: the last nonzero is taken."""
        kept_BS = pool_mask_BS != 0
        is_last_BS = kept_BS & (kept_BS.cumsum(-1) == kept_BS.sum(-1, keepdim=True))
        return mean_pool(hidden_BSD, is_last_BS)


def mean_pool(states_BSD: torch.Tensor, pool_mask_BS: torch.Tensor) -> torch.Tensor:
    """Average the kept tokens in float32; an empty mask gives zeros, never NaN."""
    weights_BS1 = pool_mask_BS[..., None].float()
    count_B1 = weights_BS1.sum(1).clamp(min=1)
    return (states_BSD.float() * weights_BS1).sum(1) / count_B1
