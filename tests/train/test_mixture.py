"""Tests of nvembed_deploy/train/mixture.py: weights, orders, and going on where one was."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nvembed_deploy.train.example import Example
from nvembed_deploy.train.mixture import Blend, Mixture


class Numbers(list):
    """A source of examples in memory: any sequence will do."""


def source(name: str, count: int, negatives: int = 0) -> Numbers:
    texts = tuple(f"n{i}" for i in range(negatives))
    return Numbers(Example("retrieval", name, f"{name}{i}", "p", texts) for i in range(count))


def mixture(*, weights=(3.0, 1.0), most: int = 7, one: bool = False, seed: int = 0) -> Mixture:
    return Mixture([source("a", 50, 5), source("b", 20, 5)], Blend(weights, most, one), seed)


def test_sources_are_drawn_by_their_weights() -> None:
    counts = Counter(e.instruction for e in mixture().draw(4000))
    assert counts["a"] == pytest.approx(3000, rel=0.05)


def test_a_source_is_passed_through_whole_before_it_repeats_in_another_order() -> None:
    drawn = [e.query for e in mixture(weights=(1.0, 1e-12)).draw(100)]
    assert len(set(drawn[:50])) == len(set(drawn[50:])) == 50
    assert drawn[:50] != drawn[50:]


def test_sources_of_a_length_have_orders_of_their_own() -> None:
    alike = Mixture([source("a", 20), source("b", 20)], Blend((1.0, 1.0), 0, False), 0)
    drawn = [e.query for e in alike.draw(60)]
    first, second = ([q[1:] for q in drawn if q[0] == name][:15] for name in "ab")
    assert first != second


def test_a_batch_of_one_source_has_one() -> None:
    many = mixture(one=True)
    sizes = [len({e.instruction for e in many.draw(6)}) for _ in range(20)]
    assert sizes == [1] * 20


def test_going_on_gives_what_would_have_come() -> None:
    whole, first = mixture(most=2), mixture(most=2)
    expected = [whole.draw(7) for _ in range(12)]
    assert [first.draw(7) for _ in range(5)] == expected[:5]
    state = json.loads(json.dumps(first.state_dict()))
    second = mixture(most=2)
    second.load_state_dict(state)
    assert [second.draw(7) for _ in range(7)] == expected[5:]


def test_a_seed_makes_another_order() -> None:
    assert mixture(seed=1).draw(9) == mixture(seed=1).draw(9) != mixture(seed=2).draw(9)


def test_at_most_so_many_negatives_and_not_always_the_first() -> None:
    drawn = mixture(most=2).draw(50)
    assert {len(set(e.negatives)) for e in drawn} == {2}
    assert len({e.negatives for e in drawn}) > 5
    assert {len(e.negatives) for e in mixture(most=0).draw(5)} == {0}
