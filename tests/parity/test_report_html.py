"""Tests of nvembed_deploy/parity/report_html.py: what a reader sees of each task."""

from __future__ import annotations

import re

import pytest

from nvembed_deploy.parity.bootstrap import Interval
from nvembed_deploy.parity.embedding import EmbeddingParity
from nvembed_deploy.parity.margins import MARGINS
from nvembed_deploy.parity.report_html import render
from nvembed_deploy.parity.verdict import Verdict
from tests.parity.test_screen import NUMBERS, found

SIDE = {"name": "a", "kind": "artifact", "runtime": "onnx", "device": "cpu", "dtype": None}
REPORT = {"candidate": SIDE, "reference": SIDE, "environment": {}, "seconds": 1.0}
FEW_PIXELS = 60


def page(*intervals: Interval | None) -> str:
    tasks = [found(f"task {place}", interval) for place, interval in enumerate(intervals)]
    embedding = EmbeddingParity(**NUMBERS | {"histogram": [(1.0, 3)]})
    return render(Verdict(False, [], [], tasks, embedding, MARGINS["fp16"], "fp16"), REPORT)


@pytest.mark.parametrize("width", [0.0, 3e-4, 0.02, 0.3])
def test_the_labels_of_the_axis_can_be_told_apart_however_wide_an_interval_is(width: float) -> None:
    chart = page(Interval(-width, width, 60, "queries")).partition("</svg>")[0]
    labels = re.findall(r"<text x='([\d.]+)' y='[\d.]+' text-anchor='middle'>", chart)
    left, middle, right = map(float, labels)
    assert left + FEW_PIXELS < middle < right - FEW_PIXELS
    assert "band: margin 0.0005" in chart


def test_each_task_is_shown_with_its_interval_in_numbers() -> None:
    rows = page(Interval(-0.0123, 0.0045, 60, "queries"), None)
    assert "-0.0123 .. +0.0045" in rows
    assert "no interval" in rows
