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
    more: Annotated[tuple[Inner, ...], Field(min_length=1)] = (Inner(),)
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "bad":
            raise ValueError("bad is no name")
        return self


def test_a_right_file_is_its_sections() -> None:
    outer = validated(Outer, {"name": "a", "inner": {"size": 2}}, "plan p")
    assert outer == Outer(name="a", inner=Inner(size=2))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "plan p:\n  name is missing"),
        ({"name": "bad"}, "plan p:\n  plan: bad is no name"),
        (
            {"name": "a", "inner": {"size": 0}},
            "plan p:\n  inner.size is 0: Input should be greater",
        ),
        (
            {"inner": {"sise": 1}, "x": 2},
            "\n  name is missing\n  unknown key inner.sise, expected one of size\n  unknown key x",
        ),
    ],
)
def test_all_mistakes_are_told_with_their_keys(values: dict, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validated(Outer, values, "plan p")
    assert problem in caught.value.problem
    assert caught.value.fix == "correct them"


def test_a_list_is_not_called_empty_for_what_was_refused_in_it() -> None:
    with pytest.raises(RecipeError) as caught:
        validated(Outer, {"name": "a", "more": [{"sise": 2}]}, "plan p")
    assert caught.value.problem == "plan p:\n  unknown key more.0.sise, expected one of size"


@pytest.mark.parametrize(
    ("wrong", "keys"), [("iner", "inner, name, more"), ("x", "name, more, inner")]
)
def test_an_unknown_key_is_told_with_those_there_are_the_nearest_first(
    wrong: str, keys: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        validated(Outer, {"name": "a", wrong: 1}, "plan p")
    assert caught.value.problem == f"plan p:\n  unknown key {wrong}, expected one of {keys}"
