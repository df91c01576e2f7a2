"""This file owns the page of a run: it opens offline, light or dark, without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from nvembed_deploy import cli
from nvembed_deploy.bench.charts import Range, bars, legend, lines, ranges
from nvembed_deploy.bench.report import MixNumbers, Report, SideNumbers, short
from nvembed_deploy.bench.scaling import BATCH_TOKENS, CLIFF, CORPUS_TOKENS, Curve, Scaling

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #66717f; --line: #d9dee4; --back: #fff;
  --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a3b1; --line: #36404b;
  --back: #14191f; --bad: #ff7b6b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .92em; } td, th { padding: .3rem .5rem;
  text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; }
.soft { color: var(--soft); } .bad { color: var(--bad); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.legend span { margin-right: 1rem; } .legend i { display: inline-block; width: .8em; height: .8em;
  border-radius: 2px; margin-right: .35em; }
"""
_FAR = 0.99


def render(report: Report) -> str:
    """Return the page."""
    first, *others = (escape(name) for name in report.sides)
    title = f"Speed of {first}"
    beside = f" <span class='soft'>beside {', '.join(others)}</span>" if others else ""
    return "\n".join(
        (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}{beside}</h1>",
            f"<p class='soft'>{_machine(report)}</p>",
            *(
                f"<p class='bad'>Left out when it failed: {escape(p)}</p>"
                for p in report.faults.values()
            ),
            *(part for mix in report.mixes for part in _mix(mix, report.shortage(mix))),
            *_starts(report),
            *(_scaling(report.scaling) if report.scaling else ()),
            *_settings(report),
            "</body></html>\n",
        )
    )


def _machine(report: Report) -> str:
    facts = report.machine
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    memory = cli.human_bytes(facts["memory_bytes"])
    return escape(
        f"{facts['processor']}, {facts['cores']} cores, {memory}, {gpus}; load "
        f"{facts['load'][0]:g} before the run; {report.date}"
    )


def _mix(mix: MixNumbers, shortage: str) -> Iterator[str]:
    yield f"<h2>{escape(mix.name)}</h2>"
    yield (
        f"<p class='soft'>{mix.texts:,} texts{shortage} of {mix.shortest} to {mix.longest} tokens, "
        f"{mix.tokens:,} in all</p><h3>Tokens per second</h3>"
    )
    speeds = {name: _speed(side) for name, side in mix.sides.items()}
    yield bars(speeds, f"tokens per second, {mix.name}")
    yield "<h3>One text at a time: p50 to p99, milliseconds</h3>"
    waits = {name: _wait(side) for name, side in mix.sides.items()}
    yield ranges(waits, f"latency, {mix.name}")
    yield "<table><tr><th></th><th>tokens/s</th><th>first side is</th><th>texts/s</th>"
    yield "<th>p95 ms</th><th>of peak</th><th>tokenising</th><th>lowest cosine</th></tr>"
    for name, side in mix.sides.items():
        tone = "" if side.cosine_min >= _FAR else " class='bad'"
        yield (
            f"<tr><td>{escape(name)}</td><td>{side.tokens_per_second:,.0f}</td>"
            f"<td>{side.speedup:.2f} x</td><td>{short(side.texts_per_second)}</td>"
            f"<td>{short(side.latency_ms['p95'])}</td>"
            f"<td>{_percent(side.utilisation)} {side.ceiling_dtype}</td>"
            f"<td>{_percent(side.tokenize_share)}</td><td{tone}>{side.cosine_min:.6f}</td></tr>"
        )
    yield "</table>"


def _speed(side: SideNumbers) -> Range:
    note = f"{side.tokens_per_second:,.0f}"
    return Range(side.slowest, side.tokens_per_second, side.fastest, note)


def _wait(side: SideNumbers) -> Range:
    p50, p99 = side.latency_ms["p50"], side.latency_ms["p99"]
    return Range(p50, p50, p99, f"{short(p50)} .. {short(p99)}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _starts(report: Report) -> Iterator[str]:
    yield "<h2>Start and memory</h2><h3>From starting Python to the first embedding, seconds</h3>"
    cold = {name: side.cold_start_seconds for name, side in report.sides.items()}
    yield bars({name: _seen("{:.2f} s".format, s) for name, s in cold.items()}, "cold start")
    for title, held in (
        ("Most resident memory", {n: side.peak_bytes for n, side in report.sides.items()}),
        ("GPU memory", {n: side.gpu_bytes for n, side in report.sides.items()}),
    ):
        if any(held.values()):
            yield f"<h3>{title}</h3>"
            yield bars({name: _seen(cli.human_bytes, count) for name, count in held.items()}, title)


def _seen(words: Callable[[float], str], value: float | None) -> Range:
    return Range(0, 0, 0, "not seen") if value is None else Range(value, value, value, words(value))


def _scaling(scaling: Scaling) -> Iterator[str]:
    yield f"<h2>Scaling</h2>{legend(list(scaling.mixed))}"
    low, high = CORPUS_TOKENS
    for title, curve in (
        (f"Tokens per second by batch, texts of {BATCH_TOKENS} tokens", scaling.batch),
        ("Tokens per second by length, one text", scaling.length),
        (f"Tokens per second by corpus, texts of {low} to {high} tokens", scaling.corpus),
    ):
        yield f"<h3>{title}</h3>{lines(_rates(curve), title)}"
    yield "<h3>A call of mixed lengths over calls of one length each</h3><table>"
    for name, ratio in scaling.mixed.items():
        verdict = "no cliff" if name not in scaling.cliffs else f"more than {CLIFF:g}"
        yield f"<tr><td>{escape(name)}</td><td>{ratio:.3f}</td><td>{verdict}</td></tr>"
    yield "</table>"


def _rates(curve: Curve) -> dict[str, list[tuple[float, float]]]:
    return {n: [(p.at, p.tokens_per_second) for p in points] for n, points in curve.items()}


def _settings(report: Report) -> Iterator[str]:
    yield "<h2>What was measured</h2><table>"
    for name, side in report.sides.items():
        facts = ", ".join(f"{key} {value}" for key, value in side.facts.items())
        yield f"<tr><td>{escape(name)}</td><td>{escape(facts)}</td></tr>"
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"<tr><td>packages</td><td>{escape(packages)}</td></tr>"
    for key, value in report.settings.items():
        if key != "sides":
            yield f"<tr><td>{escape(key)}</td><td>{escape(_words(value))}</td></tr>"
    yield "</table><p class='soft'>Compare rows of one table: sides were measured in turns. "
    yield "Utilisation is useful arithmetic over a matrix product timed in the same round.</p>"


def _words(value: Any) -> str:  # noqa: ANN401 - JSON
    """Return a setting as people write it: 20 seconds, 5 rounds."""
    if not isinstance(value, dict):
        return str(value)
    chosen = {name: count for name, count in value.items() if count is not None}
    return ", ".join(f"{count:g} {name}" for name, count in chosen.items())
