"""This file owns which texts share a forward pass.

Texts are taken longest first, so that neighbours are of like length and the largest batch comes
first (too little memory shows at once, not after an hour). A batch closes when it would hold too
many tokens, or when padding it costs more than starting another one. Legend: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nvembed_deploy.runtimes.whole import whole


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        max_batch_tokens: most tokens, padding included (texts x longest). A longer single text
            still runs, alone.
        max_padding_tokens: most padding. It is the price of one more forward pass, counted in
            tokens: padding beyond it costs more than a new batch would. None: the runtime computes
            no padding, and none is counted in `max_batch_tokens`.
        batch_size: most texts, or None for no such bound.
    """

    max_batch_tokens: int = 2048
    max_padding_tokens: int | None = 32
    batch_size: int | None = None

    @classmethod
    def for_device(cls, device: str, *, packs: bool = False) -> BatchLimits:
        """Return the limits that suit "cpu", or any other device; `packs`: padding costs nothing.

        A forward pass reads every weight once. On one CPU core a 4096-wide float32 linear takes
        2.8 ms for 1 token and 0.21 ms for each further one, and is at full speed from 512 tokens
        (measured 2026-11-23, x86-64): a pass costs what 14 tokens do, and twice that with the
        small matrices' poor use of the core. On a GPU of 989 TFLOP/s and 4.8 TB/s (H200, bf16)
        the same balance is near 206 tokens.
        """
        limits = cls() if device == "cpu" else cls(max_batch_tokens=8192, max_padding_tokens=256)
        return replace(limits, max_padding_tokens=None) if packs else limits

    def __post_init__(self) -> None:
        """Refuse bounds that no batch can meet.

        Raises:
            InputError: a bound is too small.
        """
        for name, low in (("max_batch_tokens", 1), ("max_padding_tokens", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None:
                whole(name, value, f"set {name} to {low} or more", least=low)

    def with_batch_size(self, batch_size: int | None) -> BatchLimits:
        """Return these limits with another bound on the number of texts; None leaves it."""
        return self if batch_size is None else replace(self, batch_size=batch_size)


def plan_batches(lengths: Sequence[int], limits: BatchLimits) -> list[list[int]]:
    """Group texts into batches.

    Args:
        lengths: tokens of each text, [N].
        limits: what one batch may hold.

    Returns:
        Indices into `lengths`, one list per batch, each index once, longest texts first.
    """
    batches: list[list[int]] = []
    longest = tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens += lengths[index]
        if not batches or _is_full(len(batches[-1]), longest, tokens, limits):
            batches.append([])
            longest = tokens = lengths[index]
        batches[-1].append(index)
    return batches


def _is_full(num_texts: int, longest: int, tokens: int, limits: BatchLimits) -> bool:
    """Say whether one more text, with which there are `tokens` real ones, is one too many."""
    if num_texts == limits.batch_size:
        return True
    if limits.max_padding_tokens is None:
        return tokens > limits.max_batch_tokens
    area = (num_texts + 1) * longest
    return area > limits.max_batch_tokens or area - tokens > limits.max_padding_tokens
