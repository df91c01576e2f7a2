"""This file owns a training batch: examples to token rows, and which row answers which query.

Rows are the queries, then one positive for each in the same order, then all hard negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError
from nvembed_deploy.text import Tokenizer, Tokens
from nvembed_deploy.train.example import Example
from nvembed_deploy.train.recipe import TextSection


@dataclass(frozen=True)
class TrainBatch:
    """Q queries and P >= Q passages as token rows; rows[:Q] are queries, rows[Q:] passages."""

    rows: tuple[Tokens, ...]
    owner_P: NDArray[np.int64]
    """The query that each passage was given for."""
    keep_QP: NDArray[np.bool_]
    """False where a passage must not count against a query: it is the query itself, or what the
    batch knows to answer it (its positive under another number, or another row's of the query)."""
    truncated: int
    """Texts that lost their end."""

    @property
    def num_queries(self) -> int:
        """Return Q."""
        return len(self.keep_QP)


def make_batch(
    examples: Sequence[Example], tokenizer: Tokenizer, section: TextSection
) -> TrainBatch:
    """Tokenise examples, queries with their instructions.

    Raises:
        InputError: an instruction leaves no room for its text, or a text is no text.
    """
    queries = [(e.query, e.instruction) for e in examples]
    positives = [(e.positive, _passage_instruction(e, section)) for e in examples]
    negatives = [(n, _passage_instruction(e, section)) for e in examples for n in e.negatives]
    counts = [len(e.negatives) for e in examples]
    owner_P = np.concatenate(
        [np.arange(len(examples)), np.repeat(np.arange(len(examples)), counts)]
    )
    texts = [*queries, *positives, *negatives]
    rows = _tokenize(texts, tokenizer, section.max_tokens)
    return TrainBatch(
        rows=tuple(rows),
        owner_P=owner_P,
        keep_QP=_keep(queries, [t for t, _ in [*positives, *negatives]]),
        truncated=sum(row.is_cut for row in rows),
    )


def _passage_instruction(example: Example, section: TextSection) -> str:
    return example.instruction if example.task_type in section.instruct_passages else ""


def _tokenize(
    texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int
) -> list[Tokens]:
    by_instruction: dict[str, list[int]] = {}
    for index, (_, instruction) in enumerate(texts):
        by_instruction.setdefault(instruction, []).append(index)
    rows: list[Tokens | None] = [None] * len(texts)
    for instruction, indices in by_instruction.items():
        try:
            tokens = tokenizer.tokenize(
                [texts[i][0] for i in indices], instruction, max_tokens=max_tokens
            )
        except InputError as error:
            raise InputError(
                f"with the instruction {instruction!r}: {error.problem}", error.fix
            ) from error
        for index, row in zip(indices, tokens, strict=True):
            rows[index] = row
    return [row for row in rows if row is not None]


def _keep(queries: Sequence[tuple[str, str]], passage_texts: Sequence[str]) -> NDArray[np.bool_]:
    query_texts = [text for text, _ in queries]
    numbers = {text: n for n, text in enumerate(dict.fromkeys([*query_texts, *passage_texts]))}
    query_Q = np.array([numbers[text] for text in query_texts])
    passage_P = np.array([numbers[text] for text in passage_texts])
    positive_Q = passage_P[: len(query_Q)]
    answers_QP = passage_P == positive_Q[:, None]
    for rows in _rows_by_query(queries):  # what answers one of them answers all
        answers_QP[rows] = answers_QP[rows].any(axis=0)
    is_own_QP = np.arange(len(passage_P)) == np.arange(len(query_Q))[:, None]
    keep_QP: NDArray[np.bool_] = ~(answers_QP | (passage_P == query_Q[:, None])) | is_own_QP
    return keep_QP


def _rows_by_query(queries: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return the rows of each query, with its instruction, that the batch has several times."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    return [group for group in rows.values() if len(group) > 1]
