"""Tests of tensordtype.py: NaN and infinity are found in every number format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed_deploy.tensordtype import DTYPES, find_nonfinite

FLOATS = ["F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"]


@pytest.mark.parametrize("dtype", [d for d in FLOATS if DTYPES[d].itemsize < 4])
def test_every_pattern_of_a_narrow_float_is_judged_as_numpy_does(dtype: str) -> None:
    width = DTYPES[dtype].itemsize
    values = np.arange(1 << (8 * width), dtype=f"u{width}").view(DTYPES[dtype])
    finite = np.isfinite(values.astype(np.float32))
    for value, is_finite in zip(values[:, None], finite, strict=True):
        assert find_nonfinite(value) == (None if is_finite else (0,))
    assert find_nonfinite(values) == (int(finite.argmin()),)
    assert find_nonfinite(values[finite]) is None


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(FLOATS),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 60_000)),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=3),
    value=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
)
def test_the_first_nonfinite_value_is_found(
    dtype: str, shape: tuple[int, int], places: list[float], value: float
) -> None:
    values = np.full(shape, -1.5, DTYPES[dtype])
    indices = [np.unravel_index(int(p * values.size), shape) for p in places]
    for index in indices:
        values[index] = value
    assert find_nonfinite(values) == (min(indices) if indices else None)
    assert find_nonfinite(values.T) == (min(i[::-1] for i in indices) if indices else None)


def test_integers_empty_arrays_and_scalars_have_an_answer() -> None:
    assert find_nonfinite(np.full(3, -1, np.int16)) is None
    assert find_nonfinite(np.zeros((0, 3), np.float16)) is None
    assert find_nonfinite(np.array(np.inf, ml_dtypes.bfloat16)) == ()
    assert find_nonfinite(np.array(1.0, np.float32)) is None
