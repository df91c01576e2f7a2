"""This file owns the result: what was measured, as numbers that people compare, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.bench.flops import model_flops
from nvembed_deploy.bench.measure import MixRun
from nvembed_deploy.bench.scaling import Scaling
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.staging import replace_text


@dataclass(frozen=True)
class SideNumbers:
    """One side on one mix. Rates are medians of the rounds; `seconds` has every round.

    Attributes:
        tokens_per_second: real tokens; padding does not count.
        slowest: tokens/s of the slowest round.
        fastest: tokens/s of the fastest round.
        texts_per_second: texts.
        latency_ms: p50, p95 and p99 of single texts, and of how many (`count`).
        utilisation: useful FLOP/s over the ceiling of the same round and number format; None for
            a server, and on a GPU where the first side is on a processor.
        ceiling_dtype: the number format of that ceiling.
        tokenize_share: tokenisation's part of `encode`; None for a server.
        cosine_mean: with the first side's rows, over texts.
        cosine_min: of the text that is furthest.
        speedup: the first side's speed over this one's: the median of the rounds' own ratios.
        seconds: of each round.
    """

    tokens_per_second: float
    slowest: float
    fastest: float
    texts_per_second: float
    latency_ms: dict[str, float]
    utilisation: float | None
    ceiling_dtype: str
    tokenize_share: float | None
    cosine_mean: float
    cosine_min: float
    speedup: float
    seconds: list[float]


@dataclass(frozen=True)
class MixNumbers:
    """All sides on one mix."""

    name: str
    texts: int
    tokens: int
    shortest: int
    longest: int
    ceiling_flops: dict[str, float]
    sides: dict[str, SideNumbers]


@dataclass(frozen=True)
class SideStart:
    """How a side began, and the most memory it took. None: it cannot be seen."""

    load_seconds: float | None
    cold_start_seconds: float | None
    peak_bytes: int | None
    gpu_bytes: int | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """A whole run; `faults` says why a side is missing in some tables, by its name."""

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    sides: dict[str, SideStart]
    mixes: list[MixNumbers]
    scaling: Scaling | None = None
    faults: dict[str, str] = field(default_factory=dict)

    def shortage(self, mix: MixNumbers) -> str:
        """Return what to say where a mix holds fewer texts than a round was to have."""
        wanted = self.settings.get("effort", {}).get("texts") or 0
        return f" (all that it holds; --texts is {wanted:,})" if mix.texts < wanted else ""

    def write_json(self, path: Path) -> None:
        """Write all numbers."""
        replace_text(path, json.dumps(asdict(self), indent=2) + "\n")


def short(value: float) -> str:
    """Return a number in three or four digits and never as 1e+03: 0.724, 97.7, 1,390."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"  # noqa: PLR2004


def summarize(run: MixRun, spec: ModelSpec, facts: Mapping[str, Mapping[str, Any]]) -> MixNumbers:
    """Turn the rounds of a mix into numbers; `facts` are the sides', by name."""
    first = next(iter(run.encode))
    on_cpu = _is_on_cpu(facts[first])
    flops = model_flops(spec, run.lengths)
    sides = {}
    for name, seconds in run.encode.items():
        rates = [sum(run.lengths) / s for s in seconds]
        is_beside = _is_on_cpu(facts[name]) == on_cpu  # where the ceiling was taken
        dtype = _ceiling_dtype(run, str(facts[name].get("dtype", "")) * is_beside)
        sides[name] = SideNumbers(
            tokens_per_second=_median(rates),
            slowest=min(rates),
            fastest=max(rates),
            texts_per_second=run.count / _median(seconds),
            latency_ms=_latency(run.singles[name]),
            utilisation=_utilisation(run, flops, seconds, dtype),
            ceiling_dtype=dtype,
            tokenize_share=_share(run.tokenize.get(name), seconds),
            cosine_mean=float(run.cosine[name].mean()),
            cosine_min=float(run.cosine[name].min()),
            speedup=_median(t / o for t, o in zip(seconds, run.encode[first], strict=True)),
            seconds=seconds,
        )
    ceiling = {k: _median(round_[k] for round_ in run.ceiling) for k in run.ceiling[0]}
    ends = min(run.lengths), max(run.lengths)
    return MixNumbers(run.name, run.count, sum(run.lengths), *ends, ceiling, sides)


def _is_on_cpu(facts: Mapping[str, Any]) -> bool:
    return str(facts.get("device", "cpu")) == "cpu"


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _latency(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99 = (float(np.percentile(seconds, p) * 1e3) for p in (50, 95, 99))
    return {"p50": p50, "p95": p95, "p99": p99, "count": len(seconds)}


def _ceiling_dtype(run: MixRun, dtype: str) -> str:
    """Return the side's own format, or fp32 where no product of it was timed (int8).

    Empty where none was timed at all.
    """
    if not dtype or not run.ceiling[0]:
        return ""
    return dtype if dtype in run.ceiling[0] else "fp32"


def _utilisation(run: MixRun, flops: float, seconds: list[float], dtype: str) -> float | None:
    if not dtype or dtype not in run.ceiling[0]:
        return None
    return _median(
        flops / s / ceiling[dtype] for s, ceiling in zip(seconds, run.ceiling, strict=True)
    )


def _share(tokenize: list[float] | None, encode: list[float]) -> float | None:
    return None if tokenize is None else _median(tokenize) / _median(encode)
