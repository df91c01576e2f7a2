"""This file owns report.html: one page that opens offline, light or dark, without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from nvembed_deploy.parity.verdict import TaskParity, Verdict

_WIDTH, _ROW = 720, 34
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #66717f; --line: #d9dee4; --back: #fff;
  --good: #1a7f4b; --bad: #c0392b; --bar: #3d7ab8; --band: #e3eef8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a3b1; --line: #36404b;
  --back: #14191f; --good: #46c285; --bad: #ff7b6b; --bar: #6fa8dc; --band: #20303f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.verdict { border-left: 6px solid var(--tone); padding: .4rem 1rem; margin: 1.2rem 0; }
.verdict b { color: var(--tone); font-size: 1.2rem; }
.yes { --tone: var(--good); } .no { --tone: var(--bad); }
table { border-collapse: collapse; width: 100%; } td, th { padding: .3rem .6rem; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: var(--soft); } code { font-size: .85em; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
"""


def render(verdict: Verdict, report: dict[str, Any]) -> str:
    """Return the page."""
    return "\n".join(
        (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>Parity: {escape(report['candidate']['name'])}</title>",
            f"<style>{_STYLE}</style></head><body>",
            *_head(verdict, report),
            *_tasks(verdict),
            *_embeddings(verdict),
            *_trace(verdict),
            *_worst(verdict),
            *_environment(verdict, report),
            "</body></html>\n",
        )
    )


def _head(verdict: Verdict, report: dict[str, Any]) -> Iterator[str]:
    answer = "Yes: it may replace the reference" if verdict.passed else "No: it may not replace it"
    yield (
        f"<h1>{escape(report['candidate']['name'])} <span class='soft'>against</span> "
        f"{escape(report['reference']['name'])}</h1>"
    )
    yield f"<div class='verdict {'yes' if verdict.passed else 'no'}'><b>{answer}</b>"
    yield f"<div class='soft'>precision {escape(verdict.precision)}; a main score may be lower by "
    yield f"at most {verdict.margins.score:g}, at 95 % confidence</div>"
    if verdict.reasons:
        yield "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons) + "</ul>"
    for note in verdict.basis.notes if verdict.basis else []:
        yield f"<div>Note: {escape(note)}</div>"
    if verdict.causes:
        yield f"<div>Where to look: {escape('; '.join(verdict.causes))}</div>"
    yield "</div>"


def _tasks(verdict: Verdict) -> Iterator[str]:
    if not verdict.tasks:
        return
    yield "<h2>Tasks</h2>"
    yield _bars(verdict)
    yield "<table><tr><th>task</th><th>metric</th><th class='n'>reference</th>"
    yield "<th class='n'>artifact</th><th class='n'>difference</th><th class='n'>95 %</th>"
    yield "<th>instruction</th></tr>"
    for task in verdict.tasks:
        tone = "" if task.passed else " style='color: var(--bad)'"
        yield (
            f"<tr><td>{escape(task.name)}</td><td>{escape(task.metric)}</td>"
            f"<td class='n'>{task.reference:.4f}</td><td class='n'>{task.candidate:.4f}</td>"
            f"<td class='n'{tone}>{task.difference:+.4f}</td><td class='n'>{task.between}</td>"
            f"<td class='soft'>{escape(task.instruction or '(none)')}</td></tr>"
        )
    yield "</table>"


def _bars(verdict: Verdict) -> str:
    """Draw each task's difference with its interval, and the margin as the line not to cross."""
    margin = verdict.margins.score
    tasks = [task for task in verdict.tasks if task.is_defined]
    ends = [abs(e) for t in tasks for e in _ends(t)]
    farthest = max([*ends, margin]) or 1.0
    left, right = 230, _WIDTH - 20
    middle, half = (left + right) / 2, (right - left) / 2

    def x(value: float) -> float:
        return middle + half * value / (1.25 * farthest)

    height = _ROW * len(tasks) + 40
    parts = [
        f"<svg viewBox='0 0 {_WIDTH} {height}' role='img' aria-label='differences by task'>",
        f"<rect x='{x(-margin):.1f}' y='8' width='{x(margin) - x(-margin):.1f}' "
        f"height='{height - 36}' fill='var(--band)'/>",
        f"<line x1='{middle}' x2='{middle}' y1='8' y2='{height - 28}' stroke='var(--line)'/>",
    ]
    for row, task in enumerate(tasks):
        y = 8 + _ROW * row + _ROW / 2
        low, high = _ends(task)
        tone = "var(--bar)" if task.passed else "var(--bad)"
        parts += [
            f"<text x='{left - 12}' y='{y + 4}' text-anchor='end'>{escape(task.name[:34])}</text>",
            f"<line x1='{x(low):.1f}' x2='{x(high):.1f}' y1='{y}' y2='{y}' stroke='{tone}' "
            "stroke-width='3'/>",
            f"<circle cx='{x(task.difference):.1f}' cy='{y}' r='5' fill='{tone}'/>",
        ]
    for value in (-farthest, 0.0, farthest):  # the margin's own ends may lie too close for words
        parts.append(
            f"<text x='{x(value):.1f}' y='{height - 8}' text-anchor='middle'>{value:+.2g}</text>"
        )
    parts.append(
        f"<text x='{left - 12}' y='{height - 8}' text-anchor='end'>band: margin {margin:g}</text>"
    )
    return "".join(parts) + "</svg>"


def _ends(task: TaskParity) -> tuple[float, float]:
    if task.interval is None:
        return task.difference, task.difference
    return task.interval.low, task.interval.high


def _embeddings(verdict: Verdict) -> Iterator[str]:
    found = verdict.embedding
    yield "<h2>Embeddings</h2><table>"
    for name, value in (
        ("texts", f"{found.texts:,}"),
        ("cosine, mean", f"{found.mean_cosine:.6f}"),
        ("cosine, lowest", f"{found.min_cosine:.6f}"),
        ("largest difference of a number", f"{found.max_abs:.2e}"),
        ("the median text's", f"{found.median_abs:.2e}"),
        ("rank correlation of all pairs", f"{found.spearman:.6f}"),
        ("ten nearest in common", f"{found.neighbours:.2%}"),
        ("the same, queries in the reference's index", f"{found.cross_neighbours:.2%}"),
        ("a text alone against in a batch", f"{found.batch_drift:.2e}"),
        ("cosine of a long text", f"{found.long_cosine:.6f}"),
        ("cosine of single words", f"{found.brief_cosine:.6f}"),
        ("cosine of a cut text", f"{found.cut_cosine:.6f}"),
        ("largest distance of a length from 1", f"{found.norm_drift:.1e}"),
    ):
        yield f"<tr><td>{name}</td><td class='n'>{value}</td></tr>"
    yield "</table>"
    yield _histogram(found.histogram)


def _histogram(bins: list[tuple[float, int]]) -> str:
    """Draw how many texts are how far, by powers of ten of 1 - cosine."""
    most = max(count for _, count in bins) or 1
    step, floor = _WIDTH / len(bins), 130
    parts = [f"<svg viewBox='0 0 {_WIDTH} 170' role='img' aria-label='1 - cosine by text'>"]
    for place, (edge, count) in enumerate(bins):
        height = 110 * count / most
        top = floor - height
        middle = step * (place + 0.5)
        parts += [
            f"<rect x='{step * place + 6:.1f}' y='{top:.1f}' width='{step - 12:.1f}' "
            f"height='{height:.1f}' fill='var(--bar)'/>",
            f"<text x='{middle:.1f}' y='{top - 5:.1f}' text-anchor='middle'>{count}</text>",
            f"<text x='{middle:.1f}' y='{floor + 16}' text-anchor='middle'>&lt; {edge:.0e}</text>",
        ]
    parts.append(f"<text x='{_WIDTH / 2}' y='166' text-anchor='middle'>1 - cosine</text>")
    return "".join(parts) + "</svg>"


def _trace(verdict: Verdict) -> Iterator[str]:
    """Draw the drift after each layer, by powers of ten, with the tolerance as a line."""
    if verdict.trace is None:
        return
    yield "<h2>States after each layer</h2>"
    drift, tolerance = verdict.trace.drift, verdict.trace.tolerance
    lowest, highest = -8.0, 1.0
    step = _WIDTH / len(drift)

    def y(value: float) -> float:
        power = min(max(math.log10(max(value, 1e-12)), lowest), highest)
        return 20 + 130 * (highest - power) / (highest - lowest)

    parts = [f"<svg viewBox='0 0 {_WIDTH} 180' role='img' aria-label='drift by layer'>"]
    for layer, found in enumerate(drift):
        tone = "var(--bad)" if found > tolerance else "var(--bar)"
        parts.append(
            f"<rect x='{step * layer + 1:.1f}' y='{y(found):.1f}' width='{step - 2:.1f}' "
            f"height='{150 - y(found):.1f}' fill='{tone}'><title>layer {layer}: {found:.1e}"
            "</title></rect>"
        )
    parts += [
        f"<line x1='0' x2='{_WIDTH}' y1='{y(tolerance):.1f}' y2='{y(tolerance):.1f}' "
        "stroke='var(--bad)' stroke-dasharray='4 4'/>",
        f"<text x='0' y='{y(tolerance) - 4:.1f}'>tolerance {tolerance:g}</text>",
        "<text x='0' y='170'>layer 0</text>",
        f"<text x='{_WIDTH}' y='170' text-anchor='end'>layer {len(drift) - 1}</text></svg>",
    ]
    yield "".join(parts)


def _worst(verdict: Verdict) -> Iterator[str]:
    yield "<h2>Texts that differ most</h2><table><tr><th class='n'>cosine</th><th>text</th></tr>"
    for worst in verdict.embedding.worst:
        yield (
            f"<tr><td class='n'>{worst.cosine:.6f}</td><td>{escape(worst.text)}"
            f"<div class='soft'>{escape(worst.instruction)}</div></td></tr>"
        )
    yield "</table>"


def _environment(verdict: Verdict, report: dict[str, Any]) -> Iterator[str]:
    yield "<h2>What was compared</h2><table>"
    for side in ("candidate", "reference"):
        facts = report[side]
        recipe = ", ".join(f"{k}={v}" for k, v in facts.get("recipe", {}).items())
        dtype = f" in {facts['dtype']}" if facts["dtype"] else ""
        yield (
            f"<tr><td>{side}</td><td>{escape(facts['name'])}, {facts['kind']}, runtime "
            f"{escape(facts['runtime'])} on {escape(facts['device'])}{dtype}"
            f"<div class='soft'>{escape(recipe)}</div></td></tr>"
        )
    for side in ("candidate", "reference"):
        for name, digest in report[side].get("sha256", {}).items():
            yield f"<tr><td>{side}'s {escape(name)}</td><td><code>{digest}</code></td></tr>"
    if verdict.basis:
        yield from _suite(verdict.basis.suite)
    versions = ", ".join(f"{k} {v}" for k, v in report["environment"].items())
    yield f"<tr><td>environment</td><td>{escape(versions)}</td></tr>"
    yield f"<tr><td>took</td><td>{report['seconds']:g} s</td></tr></table>"


def _suite(suite: dict[str, Any]) -> Iterator[str]:
    if "sha256" in suite:
        what = f"{escape(suite['name'])}<br><code>{suite['sha256']}</code>"
        yield f"<tr><td>suite</td><td>{what}</td></tr>"
    for name, revision in suite.get("mteb", {}).items():
        yield f"<tr><td>{escape(name)}</td><td><code>{escape(revision)}</code></td></tr>"
