"""This file owns parity of the embeddings themselves: how near the two sides' vectors are.

Shapes: N texts, D width; C candidate, R reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.parity.statistic import score_of, spearman_of
from nvembed_deploy.parity.subject import Subject, Text

Rows = NDArray[np.float32]
NEIGHBOURS = 10
WORST = 10
_RANKED = 1000
"""Texts whose neighbours are compared: all pairs of these."""
_BATCH = 24
_LONG_WORDS, _CUT_TOKENS = 700, 48


@dataclass(frozen=True)
class Worst:
    """A text on which the two sides differ most."""

    cosine: float
    instruction: str
    text: str


@dataclass(frozen=True)
class EmbeddingParity:
    """How near the two sides' embeddings are."""

    texts: int
    mean_cosine: float
    min_cosine: float
    max_abs: float
    median_abs: float
    """Median over texts of a text's largest difference."""
    norm_drift: float
    """Largest distance of the candidate's lengths from 1."""
    plain_cosine: float
    """Mean over texts without an instruction."""
    instructed_cosine: float
    """Mean over texts with one."""
    spearman: float
    neighbours: float
    """Share of a text's ten nearest that both sides agree on."""
    cross_neighbours: float
    """The same for queries of the candidate in an index of the reference."""
    batch_drift: float
    """Largest difference of a text alone and in a batch, on the candidate."""
    long_cosine: float
    """Cosine of the two sides on a long text."""
    brief_cosine: float
    """Mean of single words."""
    cut_cosine: float
    """The same where the text is cut to few tokens."""
    histogram: list[tuple[float, int]]
    """(upper edge of 1 - cosine, texts)."""
    worst: list[Worst]


def compare_embeddings(
    candidate: Subject, reference: Subject, texts: Sequence[Text]
) -> EmbeddingParity:
    """Compare both sides on texts that their caches hold."""
    candidate_ND, reference_ND = _rows(candidate, texts), _rows(reference, texts)
    norm_N = np.linalg.norm(candidate_ND.astype(np.float64), axis=1)
    cosine_N = _cosines(candidate_ND, reference_ND)
    is_plain_N = np.array([not text.instruction for text in texts])
    drift_N = np.abs(candidate_ND - reference_ND).max(axis=1)
    joined = _long_text(texts)
    some = np.linspace(0, len(texts) - 1, min(len(texts), _RANKED)).astype(int)
    similar = [rows[some] @ rows[some].T for rows in (candidate_ND, reference_ND)]
    queries = np.array([i for i in some if texts[i].role != "document"], int)
    documents = np.array([i for i in some if texts[i].role != "query"], int)
    index_RD = reference_ND[documents]
    order = np.argsort(cosine_N, kind="stable")[:WORST]
    return EmbeddingParity(
        texts=len(texts),
        mean_cosine=float(cosine_N.mean()),
        min_cosine=float(cosine_N.min()),
        max_abs=float(drift_N.max()),
        median_abs=float(np.median(drift_N)),
        norm_drift=float(np.abs(norm_N - 1).max()),
        plain_cosine=_mean(cosine_N[is_plain_N]),
        instructed_cosine=_mean(cosine_N[~is_plain_N]),
        spearman=_rank_correlation(*similar),
        neighbours=_overlap(*similar, own=True),
        cross_neighbours=_overlap(
            candidate_ND[queries] @ index_RD.T, reference_ND[queries] @ index_RD.T
        ),
        batch_drift=_batch_drift(candidate, texts),
        long_cosine=_cosine_of(candidate, reference, [joined], None),
        brief_cosine=_cosine_of(candidate, reference, _words(texts), None),
        cut_cosine=_cosine_of(candidate, reference, [joined], _CUT_TOKENS),
        histogram=_histogram(1 - cosine_N),
        worst=[Worst(float(cosine_N[i]), texts[i].instruction, texts[i].text[:300]) for i in order],
    )


def _rows(subject: Subject, texts: Sequence[Text]) -> Rows:
    rows_ND = np.empty((len(texts), subject.encoder.get_embedding_dimension()), np.float32)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, text in enumerate(texts):
        groups.setdefault((text.instruction, text.role), []).append(place)
    for (instruction, role), places in groups.items():
        rows_ND[places] = subject.embed([texts[i].text for i in places], instruction, role)
    return rows_ND


def _rank_correlation(one_NN: Rows, other_NN: Rows) -> float:
    """Return Spearman's correlation of all pairs' similarities."""
    upper = np.triu_indices(len(one_NN), 1)
    if len(upper[0]) < 2:  # noqa: PLR2004 - one pair has no order
        return 1.0
    values = np.stack([one_NN[upper], other_NN[upper]], axis=-1).astype(np.float64)
    return score_of(spearman_of, values)


def _overlap(one_NM: Rows, other_NM: Rows, *, own: bool = False) -> float:
    """Return the mean share of the nearest that both agree on; `own` leaves out the text itself."""
    if not one_NM.size:
        return 1.0
    count = min(NEIGHBOURS, one_NM.shape[1] - own)
    if count < 1:
        return 1.0
    nearest = []
    for similar_NM in (one_NM, other_NM):
        scores_NM = similar_NM.copy()
        if own:
            np.fill_diagonal(scores_NM, -np.inf)
        nearest.append(np.argsort(-scores_NM, axis=1, kind="stable")[:, :count])
    shares = [len(set(a) & set(b)) / count for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shares))


def _batch_drift(subject: Subject, texts: Sequence[Text]) -> float:
    """Return the largest difference between a text alone and among others of other lengths."""
    chosen = [t.text for t in texts[:: max(1, len(texts) // _BATCH)]][:_BATCH]
    together_ND = subject.encoder.encode(chosen, batch_size=len(chosen), show_progress_bar=False)
    alone_ND = [subject.encoder.encode(text, show_progress_bar=False) for text in chosen[::4]]
    return float(np.abs(together_ND[::4] - np.stack(alone_ND)).max())


def _long_text(texts: Sequence[Text]) -> str:
    """Return a text of many hundred words, which is made of the given ones."""
    return " ".join(" ".join(t.text for t in texts[:400]).split()[:_LONG_WORDS])


def _words(texts: Sequence[Text]) -> list[str]:
    """Return single words: the texts' first."""
    return sorted({text.text.split()[0] for text in texts if text.text.strip()})[:_BATCH]


def _cosine_of(
    candidate: Subject, reference: Subject, texts: list[str], max_tokens: int | None
) -> float:
    """Return the mean cosine of the two sides on texts, cut to `max_tokens` if given."""
    one_ND, other_ND = (
        side.encoder.encode(texts, max_length=max_tokens, show_progress_bar=False)
        for side in (candidate, reference)
    )
    return float(_cosines(one_ND, other_ND).mean())


def _cosines(one_ND: Rows, other_ND: Rows) -> NDArray[np.float64]:
    one_ND, other_ND = one_ND.astype(np.float64), other_ND.astype(np.float64)
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    cosine_N: NDArray[np.float64] = (one_ND * other_ND).sum(1) / np.maximum(lengths_N, 1e-30)
    return cosine_N


def _mean(cosine_N: NDArray[np.float64]) -> float:
    return float(cosine_N.mean()) if len(cosine_N) else 1.0


def _histogram(distance_N: NDArray[np.float64]) -> list[tuple[float, int]]:
    edges = 10.0 ** np.arange(-8, 1)
    places = np.searchsorted(edges, np.clip(distance_N, 0, 0.999))
    return [(float(edge), int((places == i).sum())) for i, edge in enumerate(edges)]
