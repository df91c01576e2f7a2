"""Tests of nvembed_deploy/train/section.py: what a mistake is called."""

from __future__ import annotations

from typing import Annotated, Self

import pytest
from pydantic import Field, model_validator

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.train.section import Section, validated


class Inner(Section):
    size: Annotated[int, Field(ge=1)] = 1


class Outer(Section):
    name: str
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "bad":
            raise ValueError("bad is no name")
        return self


def test_a_right_file_is_its_sections() -> None:
    outer = validated(Outer, {"name": "a", "inner": {"size": 2}}, "plan p", see="docs/")
    assert outer == Outer(name="a", inner=Inner(size=2))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "plan p: name is missing"),
        ({"name": "bad"}, "plan p: plan: bad is no name"),
        ({"name": "a", "inner": {"size": 0}}, "plan p: inner.size is 0: Input should be greater"),
        ({"inner": {"sise": 1}, "x": 2}, "name is missing; unknown key inner.sise; unknown key x"),
    ],
)
def test_all_mistakes_are_told_with_their_keys(values: dict, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validated(Outer, values, "plan p", see="docs/")
    assert problem in caught.value.problem
    assert caught.value.fix == "correct them; docs/ lists the keys"
