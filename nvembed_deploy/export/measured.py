"""This file owns what a recipe leaves to measurement: the questions, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nvembed_deploy.export.linear_weights import LinearWeights
from nvembed_deploy.export.plan import device_of
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.text import Batch

OnBlock = Callable[[], None]
Measure = Callable[[ExportRecipe, LinearWeights, Sequence[Batch], OnBlock], ExportRecipe]
"""Takes a recipe, the model's linears and calibration texts; returns the recipe with an answer."""


def open_questions(recipe: ExportRecipe) -> list[tuple[str, Measure]]:
    """Return what is to be measured, by the name of the step, in order."""
    questions: list[tuple[str, Measure]] = []
    if recipe.keep_share:
        questions.append(("sensitivity", _keep_most_harmed))
    if recipe.measures_ranges:
        questions.append(("ranges", _find_per_token))
    return questions


def _keep_most_harmed(
    recipe: ExportRecipe, linears: LinearWeights, batches: Sequence[Batch], on_block: OnBlock
) -> ExportRecipe:
    """Keep a share of the weights, where rounding harms most."""
    from nvembed_deploy.export.sensitivity import choose_kept, measure_harm

    harms = measure_harm(linears, recipe.formats, batches, on_block, device_of(recipe))
    return replace(recipe, keep=(*recipe.keep, *choose_kept(harms, recipe.keep_share)))


def _find_per_token(
    recipe: ExportRecipe, linears: LinearWeights, batches: Sequence[Batch], on_block: OnBlock
) -> ExportRecipe:
    """Give a range per token where one range loses a token."""
    from nvembed_deploy.export.row_ranges import find_uneven

    uneven = find_uneven(linears, recipe.formats, batches, on_block, device_of(recipe))
    return replace(recipe, per_token=uneven)
