"""This file owns the drawings of the page, as SVG text: bars, ranges and lines by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nvembed_deploy.bench.report import short

COLOURS = ("#3d7ab8", "#d9822b", "#3f9e6b", "#b3527a", "#7a6cc4", "#8a8a3c", "#5aa5b5")
_WIDTH, _ROW, _LEFT, _RIGHT = 720, 26, 210, 110
_PLOT_HEIGHT = 240


@dataclass(frozen=True)
class Range:
    """A value and what it lies between."""

    low: float
    middle: float
    high: float
    note: str = ""


def colour(index: int) -> str:
    """Return the colour of the side at a place."""
    return COLOURS[index % len(COLOURS)]


def bars(values: Mapping[str, Range], label: str) -> str:
    """Draw a bar to each middle with its range as a line, and its note at the end."""
    most = max(value.high for value in values.values())
    parts = []
    for row, (name, value) in enumerate(values.items()):
        y, tone = 6 + _ROW * row, colour(row)
        low, middle, high = (_x(v, most) for v in (value.low, value.middle, value.high))
        centre = y + _ROW / 2 - 3
        parts += [
            _name(name, centre),
            f"<rect x='{_LEFT}' y='{y}' width='{middle - _LEFT:.1f}' height='{_ROW - 8}' "
            f"fill='{tone}' rx='2'/>",
            f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{centre}' y2='{centre}' "
            "stroke='var(--ink)' stroke-width='1.5'/>",
            f"<text x='{high + 8:.1f}' y='{centre + 4}'>{escape(value.note)}</text>",
        ]
    return _svg(parts, _ROW * len(values) + 8, label)


def ranges(values: Mapping[str, Range], label: str) -> str:
    """Draw each side's low, middle and high on one logarithmic axis: for latencies."""
    ends = [end for value in values.values() for end in (value.low, value.high)]
    bottom, top = math.log(min(ends) / 1.2), math.log(max(ends) * 1.2)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(value) - bottom) / (top - bottom)

    parts = []
    for row, (name, value) in enumerate(values.items()):
        centre, tone = 6 + _ROW * (row + 0.5), colour(row)
        parts += [
            _name(name, centre),
            f"<line x1='{x(value.low):.1f}' x2='{x(value.high):.1f}' y1='{centre}' y2='{centre}' "
            f"stroke='{tone}' stroke-width='4' stroke-linecap='round'/>",
            f"<circle cx='{x(value.middle):.1f}' cy='{centre}' r='4' fill='var(--ink)'/>",
            f"<text x='{x(value.high) + 10:.1f}' y='{centre + 4}'>{escape(value.note)}</text>",
        ]
    return _svg(parts, _ROW * len(values) + 12, label)


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Draw a line by side over a logarithmic axis; each point says its numbers when pointed at."""
    points = [point for curve in curves.values() for point in curve]
    ticks = sorted({at for at, _ in points})
    bottom, top = math.log2(ticks[0]), math.log2(ticks[-1])
    most, floor, left, right = max(y for _, y in points), _PLOT_HEIGHT - 30, 70, _WIDTH - 20

    def place(at: float, value: float) -> tuple[float, float]:
        share = (math.log2(at) - bottom) / ((top - bottom) or 1)
        return left + (right - left) * share, floor - (floor - 16) * value / most

    parts = [f"<line x1='{left}' x2='{right}' y1='{floor}' y2='{floor}' stroke='var(--line)'/>"]
    parts += [
        f"<text x='{place(at, 0)[0]:.1f}' y='{floor + 18}' text-anchor='middle'>{at:g}</text>"
        for at in ticks
    ]
    parts += [
        f"<text x='{left - 8}' y='{place(1, most * share)[1] + 4:.1f}' text-anchor='end'>"
        f"{short(most * share)}</text>"
        for share in (0.0, 0.5, 1.0)
    ]
    for row, (name, curve) in enumerate(curves.items()):
        placed = [place(*point) for point in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour(row)}' stroke-width='2.5'/>"
        )
        for (at, value), (x, y) in zip(curve, placed, strict=True):
            parts.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour(row)}'>"
                f"<title>{escape(name)}, {at:g}: {short(value)}</title></circle>"
            )
    return _svg(parts, _PLOT_HEIGHT, label)


def legend(names: Sequence[str]) -> str:
    """Name the colours."""
    marks = (
        f"<span><i style='background:{colour(i)}'></i>{escape(n)}</span>"
        for i, n in enumerate(names)
    )
    return f"<p class='legend'>{' '.join(marks)}</p>"


def _x(value: float, most: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / most


def _name(name: str, centre: float) -> str:
    text = escape(name[:30])
    return f"<text x='{_LEFT - 10}' y='{centre + 4}' text-anchor='end'>{text}</text>"


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    head = f"<svg viewBox='0 0 {_WIDTH} {height:g}' role='img' aria-label='{escape(label)}'>"
    return head + "".join(parts) + "</svg>"
