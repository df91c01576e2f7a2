"""Tests of nvembed_deploy/runtimes/encoder_values.py: texts in, unit rows and tensors out."""

from __future__ import annotations

from collections import deque

import datasets
import numpy as np
import pandas
import pytest
import torch

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.encoder_values import checked, tensor_of, texts_of, unit_rows

COLUMN = ["a"]
ROWS = {"text": COLUMN}


@pytest.mark.parametrize(
    "inputs",
    [
        "a",
        COLUMN,
        ("a",),
        deque(COLUMN),
        np.array(COLUMN),
        pandas.Series(COLUMN, index=[7]),
        datasets.Dataset.from_dict(ROWS)["text"],
    ],
    ids=["text", "list", "tuple", "sequence", "numpy", "pandas", "datasets"],
)
def test_a_text_and_lists_arrays_and_columns_of_texts_become_a_list(inputs: object) -> None:
    assert texts_of(inputs) == COLUMN


@pytest.mark.parametrize(
    "inputs", [7, None, b"ab", bytearray(b"a"), {"a"}, ROWS, np.eye(1), (text for text in "ab")]
)
def test_what_is_no_list_of_texts_is_refused_with_its_kind(inputs: object) -> None:
    with pytest.raises(InputError, match=type(inputs).__name__):
        texts_of(inputs)


def test_the_element_that_is_no_text_is_named_when_it_is_reached() -> None:
    texts = checked(iter(["a", "b", None]))
    assert [next(texts), next(texts)] == ["a", "b"]
    with pytest.raises(InputError, match=r"inputs\[2\] is a NoneType"):
        next(texts)


def test_rows_become_unit_and_zeros_stay() -> None:
    np.testing.assert_allclose(unit_rows([[3, 4], [0, 0]]), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit_rows([3.0, 4.0]).shape == (1, 2)
    np.testing.assert_allclose(unit_rows([[[3, 4]], [[0, 2]]]), [[[0.6, 0.8]], [[0, 1]]], rtol=1e-6)


def test_a_tensor_holds_the_same_numbers() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert torch.equal(tensor_of(rows), torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
