"""This file owns the gradient of a loss over more texts than memory holds the activations of.

GradCache (arXiv 2101.06983): embed chunk by chunk, take the loss's gradient with respect to the
embeddings, then send it back through each chunk. Chunks within `live_tokens` keep their graph;
only the others are computed twice, with the same random numbers (dropout), so that the result is
the unchunked gradient. On several ranks each embeds its share of the rows, all hold all
embeddings, and gradients are summed. Shapes: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from nvembed_deploy.text import Tokens, collate

Embed = Callable[[Sequence[Tokens]], torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """Tokens (padding included) of one chunk, and of the chunks whose activations are kept."""

    chunk_tokens: int
    live_tokens: int


@dataclass
class _Chunk:
    indices: list[int]
    embedding_BD: torch.Tensor
    random: list[torch.Tensor] | None
    """The generators' states before the chunk, if it must be computed again."""


def backward(rows: Sequence[Tokens], embed: Embed, loss_of: Loss, budget: Budget) -> float:
    """Add the gradient of `loss_of(embedding_ND)` to the parameters; return the loss.

    Parameters' gradients are this rank's share: sum them over ranks. Random generators are left
    anywhere: seed them before each batch.
    """
    lengths = np.array([len(row.ids) for row in rows])
    chunks = _embed(rows, embed, split_rows(lengths, budget, *_ranks()))
    embedding_ND = _gather(chunks, len(rows)).requires_grad_()
    loss = loss_of(embedding_ND)
    if torch.isfinite(loss):
        loss.backward()  # type: ignore[no-untyped-call]
        gradient_ND = embedding_ND.grad
        assert gradient_ND is not None
        for chunk in chunks:
            _send_back(chunk, rows, embed, gradient_ND)
    return float(loss.detach())


def split_rows(
    lengths_N: np.ndarray, budget: Budget, rank: int = 0, world: int = 1
) -> list[tuple[list[int], bool]]:
    """Return a rank's rows as chunks of like length, each with whether it keeps its activations.

    Both agree on all ranks: collectives inside a pass of the model must be met by all.
    """
    order = np.argsort(lengths_N, kind="stable")[::-1]
    shares = [_chunks(order[r::world], lengths_N, budget.chunk_tokens) for r in range(world)]
    most = max(len(share) for share in shares)
    for share in shares:
        _stretch(share, most)
    tokens = [[len(c) * max(lengths_N[c], default=0) for c in share] for share in shares]
    most_spent = np.cumsum(tokens, axis=1).max(axis=0)
    return [
        (c, bool(n <= budget.live_tokens)) for c, n in zip(shares[rank], most_spent, strict=True)
    ]


def _stretch(chunks: list[list[int]], count: int) -> None:
    """Halve the widest chunks until there are as many as asked for."""
    while len(chunks) < count:
        widest = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        half = len(chunks[widest]) // 2
        chunks[widest : widest + 1] = [chunks[widest][:half], chunks[widest][half:]]


def _chunks(order: np.ndarray, lengths_N: np.ndarray, chunk_tokens: int) -> list[list[int]]:
    chunks: list[list[int]] = [[]]
    for index in order.tolist():
        longest = lengths_N[chunks[-1][0]] if chunks[-1] else lengths_N[index]
        if chunks[-1] and longest * (len(chunks[-1]) + 1) > chunk_tokens:
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _embed(
    rows: Sequence[Tokens], embed: Embed, split: list[tuple[list[int], bool]]
) -> list[_Chunk]:
    chunks = []
    for indices, is_live in split:
        random = None if is_live else _random_state()
        with torch.set_grad_enabled(is_live):
            embedding_BD = _embed_rows(rows, indices, embed)
        chunks.append(_Chunk(indices, embedding_BD, random))
    return chunks


def _embed_rows(rows: Sequence[Tokens], indices: list[int], embed: Embed) -> torch.Tensor:
    """Embed the rows; for none of them a stand-in runs, so that all ranks run the model."""
    if not indices:
        return embed(rows[:1])[:0]
    return embed([rows[i] for i in indices])


def _send_back(
    chunk: _Chunk, rows: Sequence[Tokens], embed: Embed, gradient_ND: torch.Tensor
) -> None:
    embedding_BD = chunk.embedding_BD
    if chunk.random is not None:
        _set_random_state(chunk.random)
        embedding_BD = _embed_rows(rows, chunk.indices, embed)
    gradient_BD = gradient_ND[chunk.indices]
    (embedding_BD * gradient_BD).sum().backward()  # type: ignore[no-untyped-call]
    chunk.embedding_BD = embedding_BD.detach()


def _gather(chunks: list[_Chunk], count: int) -> torch.Tensor:
    """Return all rows' embeddings, in order, without history; the same on every rank."""
    first = chunks[0].embedding_BD
    embedding_ND = torch.zeros(count, first.shape[1], dtype=torch.float32, device=first.device)
    for chunk in chunks:
        embedding_ND[chunk.indices] = chunk.embedding_BD.detach().float()
    if _ranks()[1] > 1:  # each row is nonzero on one rank only
        distributed.all_reduce(embedding_ND)
    return embedding_ND


def _ranks() -> tuple[int, int]:
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _random_state() -> list[torch.Tensor]:
    """Return all generators' states: where there is a GPU, a model may be elsewhere."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1:])


def embedder(model: torch.nn.Module, pad_id: int, device: torch.device) -> Embed:
    """Return the function from token rows to embedding_BD through a model."""

    def embed(rows: Sequence[Tokens]) -> torch.Tensor:
        batch = collate(rows, pad_id)
        inputs = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        embedding_BD: torch.Tensor = model(*(torch.from_numpy(x).to(device) for x in inputs))
        return embedding_BD

    return embed
