"""The page: whole, closed, escaped, and without anything from elsewhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from nvembed_deploy.bench.report_html import render
from tests.bench import made

NUMBER = re.compile(r"\s(?:x1?|x2|y1?|y2|cx|cy|width|height)='([^']*)'")


def drawings(page: str) -> list[str]:
    """Return the drawings of a page."""
    return re.findall(r"<svg.*?</svg>", page)


def test_every_side_is_in_every_drawing() -> None:
    for drawing in drawings(render(made.report())):
        names = {element.text for element in ET.fromstring(drawing).iter() if element.text}
        assert names & {"ours", "theirs"}


@pytest.mark.parametrize("scaling", [None, made.scaling()], ids=["plain", "scaling"])
def test_the_drawings_are_sound_and_within_their_frame(scaling: None) -> None:
    found = drawings(render(made.report(scaling)))
    assert len(found) == (8 if scaling else 5)
    for drawing in found:
        ET.fromstring(drawing)
        assert all(-1 <= float(n) <= 721 for n in NUMBER.findall(drawing))


def test_nothing_is_fetched_or_run() -> None:
    page = render(made.report(made.scaling()))
    assert not re.search(r"https?://|<script|<link|@import", page)


def test_names_are_escaped() -> None:
    assert "<b>" not in render(made.report(name="<b>x"))


def test_a_cliff_is_said() -> None:
    assert "no cliff" in render(made.report(made.scaling(1.05)))
    assert "more than 1.1" in render(made.report(made.scaling(1.2)))
