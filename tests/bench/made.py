"""A report made by hand, for tests that need no measurement."""

from __future__ import annotations

from nvembed_deploy.bench.report import MixNumbers, Report, SideNumbers, SideStart
from nvembed_deploy.bench.scaling import Point, Scaling

MACHINE = {"processor": "P", "cores": 2, "memory_bytes": 1 << 30, "gpus": [], "load": [0.5]}


def side(seconds: list[float], latency_ms: float = 10.0, cosine: float = 1.0) -> SideNumbers:
    """Return a side that took `seconds` for 100 tokens, round by round."""
    rates = [100 / s for s in seconds]
    wait = {"p50": latency_ms, "p95": latency_ms * 2, "p99": latency_ms * 3, "count": 9.0}
    return SideNumbers(
        tokens_per_second=sorted(rates)[len(rates) // 2],
        slowest=min(rates),
        fastest=max(rates),
        texts_per_second=1.0,
        latency_ms=wait,
        utilisation=0.5,
        ceiling_dtype="fp32",
        tokenize_share=0.01,
        cosine_mean=cosine,
        cosine_min=cosine,
        speedup=1.0,
        seconds=seconds,
    )


def report(scaling: Scaling | None = None, name: str = "theirs") -> Report:
    """Return a report in which ours is twice as fast, in the middle round, as `name`."""
    start = SideStart(1.0, 2.0, 1 << 30, None, {"runtime": "onnx"})
    sides = {"ours": side([1, 1, 1]), name: side([1, 2, 4], 30.0, 0.5)}
    mix = MixNumbers("queries", 8, 100, 10, 20, {"fp32": 1e12}, sides)
    starts = {"ours": start, name: SideStart(3.0, 5.0, 3 << 30, 1 << 30, {})}
    return Report("2026-11-24", MACHINE, {"numpy": "2"}, {"seed": 0}, starts, [mix], scaling)


def scaling(mixed: float = 1.0, speed: float = 10.0) -> Scaling:
    """Return curves of one side, from `speed` tokens/s on."""
    curve = {"ours": [Point(at, at * 10, 10 / speed) for at in (1, 2, 4)]}
    return Scaling(curve, curve, {"ours": [Point(8, 80, 2.0)]}, {"ours": mixed})
