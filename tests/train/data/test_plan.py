"""Tests of nvembed_deploy/train/data/plan.py: the page's plan loads, every mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.train.data.plan import Kind, load_plan

ROOT = Path(__file__).parents[3]
GOOD = """
[[source]]
name = "a"
path = "a.jsonl"
kind = "sts"
instruction = "find it"
"""


def test_the_plan_of_the_page_loads_and_shows_every_kind(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "plan.toml").write_text(text)
    assert {source.kind for source in load_plan(tmp_path / "plan.toml").source} == set(Kind)


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(GOOD)
    (source,) = load_plan(tmp_path / "plan.toml").source
    assert (source.min_score, source.max_negative_score, source.negatives) == (4, 2.5, 7)
    assert source.column("score") == "score"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[source]", "is not TOML"),
        ("seed = 1", "source is missing"),
        (GOOD + "limt = 3", "unknown key source.0.limt"),
        (GOOD + GOOD, "two sources are called 'a'"),
        (GOOD.replace("sts", "chat"), "source.0.kind is 'chat'"),
        (GOOD.replace("instruction", "# "), "instruction is missing"),
        (GOOD + 'keys = {label = "x"}', r"keys names \['label'\], expected \['sentence1'"),
        (GOOD + 'label_texts = {a = "b"}', "label_texts belongs to label-texts, this is sts"),
        (GOOD + "limit = 0", "source.0.limit is 0"),
        (GOOD + "negatives = true", "source.0.negatives is True"),
        ("near_duplicate = 2\n" + GOOD, "near_duplicate is 2"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=problem):
        load_plan(path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("sed = 1\n" + GOOD + "limit = 0\n")
    with pytest.raises(RecipeError, match=r"limit is 0[^\n]*\n  unknown key sed"):
        load_plan(path)


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not exist\n.*nvembed-deploy build-data --help"):
        load_plan(tmp_path / "gone.toml")
