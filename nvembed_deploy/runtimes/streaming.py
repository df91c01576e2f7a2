"""This file owns the flow of many texts through a runtime, in memory that does not grow with them.

Texts go by windows: while one is computed, the next is tokenised in a thread. Inside a window
equal texts are computed once, and batches are formed by length. Legend: N texts, D hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import ArtifactError, TextError
from nvembed_deploy.runtimes.batching import BatchLimits, plan_batches
from nvembed_deploy.runtimes.protocol import Runtime
from nvembed_deploy.text import Tokens, collate

logger = logging.getLogger(__name__)

WINDOW_TEXTS = 8192


@dataclass(frozen=True)
class _Window:
    """Texts that are planned together: the distinct ones, and which of them each text is."""

    start: int
    tokens: list[Tokens]
    distinct_N: NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """How texts become rows.

    Attributes:
        runtime: what computes.
        tokenize: texts to tokens; called from a second thread when there are many texts.
        pad_id: the token that fills a batch.
        limits: what one batch may hold.
        width: D, the size of a row.
        window_texts: texts that are planned together.
    """

    runtime: Runtime
    tokenize: Callable[[list[str]], list[Tokens]]
    pad_id: int
    limits: BatchLimits
    width: int
    window_texts: int = WINDOW_TEXTS

    def embed(
        self, texts: Iterable[str], advance: Callable[[int], None]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of one window after another, in the order of `texts`.

        Args:
            texts: any number of texts, taken two windows ahead.
            advance: called with the number of texts done.

        Yields:
            float32 [texts of the window, D].

        Raises:
            Exception: what `texts` raised, once the windows that were read whole are computed.
            ArtifactError: an embedding holds NaN or an infinity.
        """
        for window in self._windows(texts):
            rows_ND = self._embed_window(window, advance)[window.distinct_N]
            advance(len(window.distinct_N) - len(window.tokens))
            _check_finite(rows_ND, window.start)
            yield rows_ND

    def _windows(self, texts: Iterable[str]) -> Iterator[_Window]:
        """Prepare windows; where reading the texts fails, after those that were read whole."""
        failures: list[Exception] = []
        yield from self._ahead(_parts(texts, self.window_texts, failures))
        for error in failures:
            raise error

    def _ahead(self, parts: Iterator[list[str]]) -> Iterator[_Window]:
        """Prepare windows, each while its predecessor is computed."""
        first, part = next(parts, []), next(parts, [])
        if not part:  # a query: a thread would cost more than it hides
            if first:
                yield self._prepare(first, 0)
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize") as pool:
            upcoming, start = pool.submit(self._prepare, first, 0), len(first)
            while part:
                current = upcoming.result()
                upcoming, start = pool.submit(self._prepare, part, start), start + len(part)
                yield current
                part = next(parts, [])
            yield upcoming.result()

    def _prepare(self, window: list[str], start: int) -> _Window:
        row_of: dict[str, int] = {}
        distinct = [row_of.setdefault(text, len(row_of)) for text in window]
        try:
            tokens = self.tokenize(list(row_of))
        except TextError as error:
            raise error.at(start + distinct.index(error.index)) from None
        num_cut = sum(text.is_cut for text in tokens)
        if num_cut:
            logger.info("%d of %d texts are cut to the most tokens", num_cut, len(tokens))
        return _Window(start, tokens, np.asarray(distinct, dtype=np.int64))

    def _embed_window(self, window: _Window, advance: Callable[[int], None]) -> NDArray[np.float32]:
        rows_ND = np.empty((len(window.tokens), self.width), dtype=np.float32)
        lengths = [len(tokens.ids) for tokens in window.tokens]
        plan = plan_batches(lengths, self.limits)
        with ThreadPoolExecutor(self.runtime.workers, thread_name_prefix="embed") as pool:
            compute = map if self.runtime.workers == 1 else pool.map  # in turn, or side by side
            done = compute(lambda indices: self._embed_batch(window, indices), plan)
            for indices, rows_BD in zip(plan, done, strict=True):
                rows_ND[indices] = rows_BD
                advance(len(indices))
        return rows_ND

    def _embed_batch(self, window: _Window, indices: list[int]) -> NDArray[np.float32]:
        batch = collate([window.tokens[i] for i in indices], self.pad_id)
        return self.runtime.embed(batch)


def _parts(texts: Iterable[str], size: int, failures: list[Exception]) -> Iterator[list[str]]:
    """Yield texts by `size`; an error of theirs ends them and is kept for later."""
    rest = iter(texts)
    try:
        while part := list(islice(rest, size)):
            yield part
    except Exception as error:
        failures.append(error)


def _check_finite(rows_ND: NDArray[np.float32], start: int) -> None:
    bad_N = np.flatnonzero(~np.isfinite(rows_ND).all(axis=1))
    if len(bad_N):
        raise ArtifactError(
            f"the embedding of text {start + int(bad_N[0])} is not finite ({len(bad_N)} such in "
            "its window)",
            "the graph overflows: export in bf16 or fp32 instead, and run the parity suite",
        )
