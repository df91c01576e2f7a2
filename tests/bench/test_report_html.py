"""The page: whole, closed, escaped, and without anything from elsewhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from nvembed_deploy.bench.report import SideStart
from nvembed_deploy.bench.report_html import render
from nvembed_deploy.bench.table import print_report
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


def test_an_axis_is_never_in_powers() -> None:
    page = render(made.report(made.scaling(speed=2340.4)))
    assert ">9,362</text>" in page
    assert not re.search(r"\de[+-]\d", page)


def test_settings_are_words() -> None:
    effort = {"seconds": 20.0, "rounds": 5, "texts": None}
    page = render(replace(made.report(), settings={"effort": effort, "starts": 2}))
    assert "<td>effort</td><td>20 seconds, 5 rounds</td>" in page
    assert "<td>starts</td><td>2</td>" in page


@pytest.mark.parametrize(("texts", "is_said"), [(None, False), (8, False), (9, True)])
def test_fewer_texts_than_were_asked_for_are_said(texts: int | None, is_said: bool) -> None:
    report = replace(made.report(), settings={"effort": {"texts": texts}})
    said = "8 texts (all that it holds; --texts is 9) of 10 to 20 tokens"
    shown = StringIO()
    print_report(report, Console(file=shown, width=200))
    assert (said in shown.getvalue()) is is_said
    assert (said in render(report)) is is_said


def test_the_start_of_a_server_is_not_its_clients() -> None:
    report = made.report()
    report.sides["theirs"] = SideStart(None, None, None, None, {"runtime": "tei server"})
    shown = StringIO()
    print_report(report, Console(file=shown, width=200))
    assert re.search(r"^theirs +- +- +- +- +tei server", shown.getvalue(), re.MULTILINE)
    assert render(report).count("not seen") == 2


def test_names_are_escaped() -> None:
    assert "<b>" not in render(made.report(name="<b>x"))
    shown = StringIO()
    print_report(made.report(name="model[fp16]"), Console(file=shown, width=200))
    assert shown.getvalue().count("model[fp16]") == 2


def test_a_cliff_is_said() -> None:
    assert "no cliff" in render(made.report(made.scaling(1.05)))
    assert "more than 1.1" in render(made.report(made.scaling(1.2)))
