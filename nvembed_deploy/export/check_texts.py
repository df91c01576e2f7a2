"""This file owns the built-in texts of the self-check: instruction, padding and length in few."""

from __future__ import annotations

import sys

from nvembed_deploy.text import Batch, Tokenizer, collate

INSTRUCTION = "Given a question, retrieve passages that answer the question"
_QUERIES = (
    "which planet has the most moons?",
    "how do I undo the last git commit but keep my changes?",
    "比特币是怎么挖出来的？",
)
_PASSAGES = (
    "Saturn has 146 confirmed moons, more than any other planet of the solar system.",
    "git reset --soft HEAD~1 moves the branch back one commit and leaves the index as it was.",
    "A short one.",
    "🦀🐍 emoji only 🎉",
    "",
)
_SHORT_TOKENS, _LONG_TOKENS, _OWN_TOKENS = 96, 320, 16
"""Enough to cross instruction, padding and length, few enough for a 7B model on two cores; and the
least of a query's own, for models whose template is a long one."""
_LONG = " ".join(
    f"Section {i}: the quick brown fox jumps over lazy dog number {i * i % 97}, while a careful "
    "engineer writes down what was measured, on which machine, and what it means."
    for i in range(1, 9)
)


def check_batches(tokenizer: Tokenizer) -> list[Batch]:
    """Return the built-in texts as two batches: short ones of mixed lengths, and a long one."""
    (empty,) = tokenizer.tokenize([""], instruction=INSTRUCTION, max_tokens=sys.maxsize)
    limit = max(_SHORT_TOKENS, len(empty.ids) + _OWN_TOKENS)
    queries = tokenizer.tokenize(_QUERIES, instruction=INSTRUCTION, max_tokens=limit)
    passages = tokenizer.tokenize(_PASSAGES, max_tokens=_SHORT_TOKENS)
    long = tokenizer.tokenize([_LONG], max_tokens=_LONG_TOKENS)
    pad = tokenizer.spec.pad_id
    return [collate([*queries, *passages], pad), collate(long, pad)]
