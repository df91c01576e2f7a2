"""Tests of embedding_precision.py. Expected codes are sentence-transformers 6.2's own."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.embedding_precision import quantize_embeddings

ROWS = np.array([[-0.5, 0.25, 0.1], [0.5, -0.75, 0.1], [0.1, 0.0, 0.1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("precision", "codes"),
    [
        ("uint8", [[0, 254, 0], [254, 0, 0], [153, 191, 0]]),
        ("int8", [[-128, 126, -128], [126, -128, -128], [25, 63, -128]]),
        ("ubinary", [[0b01100000], [0b10100000], [0b10100000]]),
        ("binary", [[0b01100000 - 128], [0b10100000 - 128], [0b10100000 - 128]]),
    ],
)
def test_codes_are_those_of_sentence_transformers(precision: str, codes: list[list[int]]) -> None:
    got = quantize_embeddings(ROWS, precision)
    assert got.dtype == (np.uint8 if precision.startswith("u") else np.int8)
    np.testing.assert_array_equal(got, codes)


def test_float32_is_left_as_it_is() -> None:
    assert quantize_embeddings(ROWS, "float32") is ROWS


def test_a_code_is_within_one_step_of_its_value() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    codes = quantize_embeddings(rows, "uint8").astype(np.float32)
    low, step = rows.min(axis=0), np.ptp(rows, axis=0) / 255
    error = rows - (codes * step + low)
    assert (error > -1e-5).all()
    assert (error < step * 1.001).all()


def test_given_ranges_make_codes_independent_of_the_other_rows() -> None:
    ranges = np.array([[-1, -1, -1], [1, 1, 1]], dtype=np.float32)
    whole = quantize_embeddings(ROWS, "int8", ranges=ranges)
    alone = quantize_embeddings(ROWS[:1], "int8", ranges=ranges)
    np.testing.assert_array_equal(whole[:1], alone)


def test_values_outside_the_ranges_get_the_nearest_end() -> None:
    ranges = np.array([[-0.1] * 3, [0.1] * 3], dtype=np.float32)
    codes = quantize_embeddings(10 * ROWS, "int8", ranges=ranges)
    np.testing.assert_array_equal(codes[0], [-128, 127, 127])


def test_few_rows_without_ranges_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        quantize_embeddings(ROWS, "int8")
    assert "3 embeddings" in caplog.text


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_no_rows_give_no_rows_of_the_right_width(precision: str) -> None:
    got = quantize_embeddings(np.zeros((0, 12), dtype=np.float32), precision)
    assert got.shape == (0, 2 if precision.endswith("binary") else 12)


def test_one_row_without_ranges_is_refused() -> None:
    with pytest.raises(InputError, match="range of each dimension"):
        quantize_embeddings(ROWS[:1], "int8")


def test_ranges_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 4\), expected \(2, 3\)"):
        quantize_embeddings(ROWS, "int8", ranges=np.zeros((2, 4), dtype=np.float32))


def test_codes_are_not_quantised_again() -> None:
    with pytest.raises(InputError, match="are int8, expected floats"):
        quantize_embeddings(np.zeros((3, 3), dtype=np.int8), "int8")


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'int4', expected one of float32, int8"):
        quantize_embeddings(ROWS, "int4")


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_one_embedding_has_the_codes_of_its_row(precision: str) -> None:
    ranges = np.array([[-1, -1, -1], [1, 1, 1]], dtype=np.float32)
    codes = quantize_embeddings(ROWS, precision, ranges=ranges)
    np.testing.assert_array_equal(quantize_embeddings(ROWS[1], precision, ranges=ranges), codes[1])


def test_one_embedding_without_ranges_and_a_cube_are_refused() -> None:
    with pytest.raises(InputError, match="which one embedding does not have"):
        quantize_embeddings(ROWS[0], "int8")
    with pytest.raises(InputError, match=r"shape \(1, 3, 3\), expected \[N, D\] or \[D\]"):
        quantize_embeddings(ROWS[None], "int8")


@pytest.mark.parametrize("ends", [(1.0, -1.0), (np.nan, 1.0), (-np.inf, 1.0)])
def test_ranges_that_are_none_are_refused_by_their_dimension(ends: tuple[float, float]) -> None:
    ranges = np.array([[-1, -1, -1], [1, 1, 1]], dtype=np.float32)
    ranges[:, 2] = ends
    with pytest.raises(InputError, match="range of dimension 2 is from"):
        quantize_embeddings(ROWS, "int8", ranges=ranges)
