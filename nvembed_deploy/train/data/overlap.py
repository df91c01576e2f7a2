"""This file owns the removal of training texts that are nearly an evaluation's.

NV-Embed filtered training splits by BM25 similarity to evaluation texts, before sampling (arXiv
2405.17428). No threshold is known. A raw BM25 score grows with the
length of the text, so here a score counts as a share of what the evaluation text scores against
itself: 1 is the same bag of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.bm25 import Bm25
from nvembed_deploy.train.data.rows import Faults, data_files, read_rows

THRESHOLD = 0.8
"""Keeps what shares a subject, removes what lost or gained a word in ten (see the tests)."""

_OWN = 0.5
"""At least so much of a copy is words of the evaluation text, rare ones counting more. A long text
has all words of a short one, or all characters, whatever it says: it scores high and is no copy."""
_TEXT_KEYS = ("text", "sentence1", "sentence2", "query", "positive")


def evaluation_texts(
    path: Path, where: dict[str, Any] | None = None, *, without: Path | None = None
) -> list[str]:
    """Return the distinct texts of an evaluation: a JSONL file, or a folder of them.

    Args:
        path: its rows hold `text`, `sentence1` and `sentence2`, or `query` and `positive`, each a
            text or a list of texts.
        where: take only rows with these values, such as {"split": "test"}; a row without the key
            is taken.
        without: a file of the folder that is no evaluation.

    Raises:
        InputError: nothing is there, a line is broken, or no row holds a text.
    """
    texts: dict[str, None] = {}
    faults = Faults(stop=True, fix="correct it: what is not read cannot be kept out of training")
    for file in data_files(path, without=without):
        for _, row in read_rows(file, faults):
            if all(row.get(key, value) == value for key, value in (where or {}).items()):
                texts.update((text, None) for key in _TEXT_KEYS for text in _texts(row.get(key)))
    if not texts:
        raise InputError(
            f"evaluation {path} holds no text", f"its rows need one of {', '.join(_TEXT_KEYS)}"
        )
    return list(texts)


def _texts(value: object) -> list[str]:
    several = value if isinstance(value, list) else [value]
    return [text for text in several if isinstance(text, str)]


def near_duplicates(
    texts: Sequence[str], evaluation: Iterable[str], threshold: float = THRESHOLD
) -> dict[str, str]:
    """Return which of `texts` nearly are a text of the evaluation, and which one.

    Args:
        texts: of the training data.
        evaluation: texts that must stay unseen.
        threshold: the share of an evaluation text's score against itself from which on a text is
            taken for its copy.
    """
    unique = list(dict.fromkeys(texts))
    held_out = [text for text in dict.fromkeys(evaluation) if text.strip()]
    index = Bm25([*unique, *held_out])
    seen = set(unique)
    found = {text: text for text in held_out if text in seen}
    for number, text in enumerate(held_out, len(unique)):
        scores_N = index.scores(number)
        own = scores_N[number]
        if own > 0:
            near = np.flatnonzero(scores_N[: len(unique)] >= threshold * own)
            new = [i for i in near if unique[i] not in found]
            found.update((unique[i], text) for i in new if index.share(int(i), number) >= _OWN)
    return found
