"""Tests of runtimes/launch.py: every batch finds a profile, and small ones share few shapes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.errors import InputError
from nvembed_deploy.export.engine_profiles import default_profiles
from nvembed_deploy.runtimes.launch import (
    REPEATED_TOKENS,
    choose_profile,
    exact_profile,
    plan_launches,
    repeated_shape,
)

PROFILES = default_profiles(4096, 2)
NAMES = [profile.name for profile in PROFILES]
WIDE = Profile("wide", Shape(1, 2), Shape(64, 128), Shape(4096, 4096))
SHAPES = st.builds(Shape, st.integers(1, 300), st.integers(1, 4096))


@given(SHAPES)
@example(Shape(1, 4096))  # what every cut text is
def test_launches_cover_each_row_once_and_fit_their_profile(shape: Shape) -> None:
    launches = plan_launches(shape, PROFILES)
    rows = [row for launch in launches for row in range(launch.start, launch.stop)]
    assert rows == list(range(shape.batch))
    for launch in launches:
        profile = PROFILES[launch.profile]
        assert launch.shape.batch >= launch.stop - launch.start
        assert launch.shape.sequence >= shape.sequence
        assert profile.min.batch <= launch.shape.batch <= profile.max.batch
        assert profile.min.sequence <= launch.shape.sequence <= profile.max.sequence


@given(SHAPES)
def test_no_more_launches_than_the_largest_profile_needs(shape: Shape) -> None:
    most = max(p.max.batch for p in PROFILES if p.max.sequence >= shape.sequence)
    assert len(plan_launches(shape, PROFILES)) == -(-shape.batch // most)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 20), "latency"),
        ((4, 100), "latency"),
        ((64, 128), "throughput"),
        ((9, 30), "throughput"),
        ((1, 600), "long"),
        ((4, 4096), "long"),
    ],
)
def test_a_batch_runs_with_the_profile_tuned_for_its_like(
    shape: tuple[int, int], name: str
) -> None:
    assert NAMES[choose_profile(Shape(*shape), PROFILES)] == name


def test_texts_longer_than_any_profile_are_refused() -> None:
    with pytest.raises(InputError, match="4097 tokens long, the engine takes 4096"):
        plan_launches(Shape(1, 4097), PROFILES)


@given(st.integers(1, 64), st.integers(1, 512))
def test_a_small_batch_is_padded_by_an_eighth_or_by_one_grain(batch: int, sequence: int) -> None:
    (texts, tokens), is_small = repeated_shape(Shape(batch, sequence), WIDE)
    assert is_small == (batch * sequence <= REPEATED_TOKENS)
    assert texts <= batch * 9 / 8
    assert tokens <= max(sequence * 9 / 8, sequence + 15)


def test_small_batches_share_few_shapes() -> None:
    small = [
        Shape(batch, sequence)
        for batch in range(1, 65)
        for sequence in range(1, 513)
        if batch * sequence <= REPEATED_TOKENS
    ]
    shapes = {repeated_shape(shape, WIDE)[0] for shape in small}
    assert len(small) > 20 * len(shapes)


@given(SHAPES)
def test_a_repeated_shape_stays_itself(shape: Shape) -> None:
    padded, is_small = repeated_shape(shape, WIDE)
    if is_small:
        assert repeated_shape(padded, WIDE)[0] == padded or padded.batch * padded.sequence > 1024


def test_what_cannot_be_padded_needs_a_profile_that_takes_it_as_it_is() -> None:
    assert exact_profile(Shape(1, 128), PROFILES) == 0
    assert exact_profile(Shape(64, 128), PROFILES) == 1
    assert exact_profile(Shape(1, 1), PROFILES) is None
    assert exact_profile(Shape(65, 128), PROFILES) is None
