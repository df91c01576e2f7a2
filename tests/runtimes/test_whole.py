"""Tests of nvembed_deploy/runtimes/whole.py: which numbers count as whole."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.batching import BatchLimits
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.runtimes.whole import whole


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_pythons_and_numpys_numbers_are_whole(value: Any) -> None:
    number = whole("n", value, "", most=3)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", None, 4])
def test_anything_else_is_refused_with_the_bounds(value: Any) -> None:
    message = f"n is {value!r}, expected a whole number from 1 to 3"
    with pytest.raises(InputError, match=re.escape(message)):
        whole("n", value, "", most=3)


def test_every_option_that_is_a_whole_number_is_checked_alike() -> None:
    refused = "expected a whole number (of at least|from)"
    for option in ({"threads": True}, {"cuda_graphs": -1}, {"cuda_graphs": 1.5}):
        with pytest.raises(InputError, match=refused):
            RuntimeOptions(**option)  # type: ignore[arg-type]
    for name in ("batch_size", "max_batch_tokens", "max_padding_tokens"):
        with pytest.raises(InputError, match=refused):
            BatchLimits(**{name: 2.5})  # type: ignore[arg-type]
    assert RuntimeOptions(threads=np.int64(4), cuda_graphs=0).threads == 4  # type: ignore[arg-type]
