"""Tests of nvembed_deploy/train/data/prompts.py: complete, repeatable, different for each key."""

from __future__ import annotations

import pytest

from nvembed_deploy.train.data.prompts import SIDES, Shape, example_messages, task_messages
from nvembed_deploy.train.example import TASK_TYPES


@pytest.mark.parametrize("shape", Shape)
def test_a_key_decides_the_words(shape: Shape) -> None:
    keys = [str(number) for number in range(20)]
    tasks = [str(task_messages(shape, 20, key)) for key in keys]
    examples = [str(example_messages(shape, "find it", "Danish", key)) for key in keys]
    assert tasks == [str(task_messages(shape, 20, key)) for key in keys]
    assert len(set(tasks)) == 20
    assert len(set(examples)) > 10
    assert all("find it" in text and "Danish" in text for text in examples)
    assert all("{" not in text.split("'content'")[-1][12:] for text in examples)


def test_every_shape_has_its_sides_and_a_task_type_of_training() -> None:
    assert set(SIDES) == set(Shape)
    assert {sides.task_type for sides in SIDES.values()} <= set(TASK_TYPES)
