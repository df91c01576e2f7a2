"""Tests of nvembed_deploy/export/measured.py: which questions a recipe leaves open, and answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.export.measured import open_questions
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch
from tests import factories
from tests.export.test_calibrate import all_texts

__all__ = ["all_texts"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"precision": "fp16"}, []),
        ({"precision": "int8-weight"}, []),
        ({"precision": "int8"}, ["ranges"]),
        ({"precision": "int8", "per_token": ["*.down_proj"]}, []),
        ({"precision": "int8", "activations": "row"}, []),
        ({"precision": "int8", "rounding": "nearest"}, []),
        ({"precision": "fp8", "keep_share": 0.1}, ["sensitivity"]),
        ({"precision": "int8-cpu", "keep_share": 0.1}, ["sensitivity", "ranges"]),
    ],
)
def test_only_what_a_recipe_leaves_open_is_measured(
    values: dict[str, object], names: list[str]
) -> None:
    assert [name for name, _ in open_questions(load_recipe(None, values))] == names


def test_each_answer_closes_its_question_and_each_block_is_told(
    tiny_weights: Weights, all_texts: Sequence[Batch]
) -> None:
    recipe = load_recipe(None, {"precision": "int8", "rotate": False, "keep_share": 0.1})
    blocks: list[str] = []
    for name, measure in open_questions(recipe):
        with open_linears(tiny_weights, is_folded=True) as linears:
            recipe = measure(recipe, linears, all_texts, lambda name=name: blocks.append(name))
    assert recipe.keep
    assert recipe.per_token is not None
    assert not set(recipe.keep) & set(recipe.per_token)
    assert not recipe.measures_ranges
    per_question = factories.TINY.backbone.num_layers + 1
    assert blocks == ["sensitivity"] * per_question + ["ranges"] * per_question
