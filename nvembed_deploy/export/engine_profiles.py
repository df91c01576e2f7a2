"""This file owns which batch shapes an engine is tuned for.

Profiles share the plan's weights, so that more of them cost code, not gigabytes. Built in are three
habits of callers: a few short texts now, many texts together, and the longest that the model takes.
`--profile-from` fits them to the lengths of real texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.export.calibration_texts import read_texts
from nvembed_deploy.export.engine_options import EngineOptions, GraphFacts
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.text import Tokenizer

BUDGET_TOKENS = 8192
"""Tokens in a batch at which a GPU is busy; a throughput profile is tuned for as many."""
_MOST_TOKENS = 32768
"""Padded tokens of the largest batch: scratch memory is as large as that needs, some gigabytes at
NV-Embed's size. It is also what onnx_tensorrt.py gives its one profile."""
_LATENCY_BATCH, _THROUGHPUT_BATCH, _LONG_BATCH = 8, 64, 4
_SHORT_TOKENS, _TYPICAL_TOKENS = 512, 128
_GRAIN = 64
"""Longest lengths are rounded up to a multiple of it, so that one more word still fits."""


def choose_profiles(
    options: EngineOptions, graph: GraphFacts, spec: ModelSpec, tokenizer: Tokenizer
) -> tuple[Profile, ...]:
    """Return the profiles asked for, those of the texts named, or the built-in ones.

    Raises:
        RecipeError: the texts cannot be read.
    """
    if options.profiles:
        return options.profiles
    most = min(spec.text.max_tokens, spec.backbone.max_positions)
    if options.profile_from is None:
        return default_profiles(most, graph.shortest)
    lengths = read_lengths(Path(options.profile_from), tokenizer)
    return profiles_for(lengths, most, graph.shortest)


def default_profiles(max_tokens: int, shortest: int) -> tuple[Profile, ...]:
    """Return the profiles for texts of unknown lengths.

    Args:
        max_tokens: most tokens of a text.
        shortest: tokens they begin at.
    """
    return _profiles(_TYPICAL_TOKENS, _SHORT_TOKENS, max_tokens, shortest)


def profiles_for(lengths: Sequence[int], max_tokens: int, shortest: int) -> tuple[Profile, ...]:
    """Return profiles for texts of known lengths.

    They are tuned for the median. The short ones reach the 99th percentile, the long one all that
    the model takes: a text that is longer than any seen must still run. Where the 99th percentile
    is long, there are fewer texts in the largest batch; the throughput profile keeps as many as it
    is tuned for, and is shorter instead.

    Args:
        lengths: tokens of each text, instruction included.
        max_tokens: most tokens of a text.
        shortest: tokens they begin at.
    """
    ordered = sorted(min(max(length, shortest), max_tokens) for length in lengths)
    median, most = (ordered[(len(ordered) - 1) * part // 100] for part in (50, 99))
    return _profiles(median, -(-most // _GRAIN) * _GRAIN, max_tokens, shortest)


def read_lengths(path: Path, tokenizer: Tokenizer) -> list[int]:
    """Return how many tokens each text of a JSONL file has: `text`, and `instruction` if any.

    Raises:
        RecipeError: the file cannot be read, or a line is no such object.
    """
    return [
        len(tokenizer.tokenize([text.text], instruction=text.instruction)[0].ids)
        for text in read_texts(path, "profile_from")
    ]


def _profiles(typical: int, short: int, max_tokens: int, shortest: int) -> tuple[Profile, ...]:
    short, low = min(short, max_tokens), min(shortest, max_tokens)
    typical = min(typical, short)
    many = max(1, min(_THROUGHPUT_BATCH, BUDGET_TOKENS // typical))
    few = Shape(_most_texts(_LATENCY_BATCH, short), short)
    latency = Profile("latency", Shape(1, low), Shape(1, typical), few)
    most = max(many, _most_texts(_THROUGHPUT_BATCH, short))
    longest = min(short, max(typical, _MOST_TOKENS // most))
    throughput = Profile("throughput", Shape(1, low), Shape(many, typical), Shape(most, longest))
    if short == max_tokens:
        return latency, throughput
    usual = min(max_tokens, max(short, BUDGET_TOKENS // _LONG_BATCH))
    most = _most_texts(_LONG_BATCH, max_tokens)
    long = Profile("long", Shape(1, low), Shape(1, usual), Shape(most, max_tokens))
    return latency, throughput, long


def _most_texts(wanted: int, tokens: int) -> int:
    """Return how many texts of a length the largest batch has, at least one."""
    return max(1, min(wanted, _MOST_TOKENS // tokens))
