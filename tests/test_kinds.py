"""Tests of nvembed_deploy/kinds.py: a value of a wrong kind is named, with what was expected."""

from __future__ import annotations

import re
from types import NoneType
from typing import Any

import pytest

from nvembed_deploy.kinds import Kinds, check_kinds, check_values

KINDS: Kinds = {"count": int, "seconds": (int, float), "name": (str, NoneType)}
GOOD: dict[str, Any] = {"count": 3, "seconds": 1.5, "name": None}


def test_values_of_their_kinds_pass() -> None:
    check_kinds(GOOD, KINDS)
    check_kinds({**GOOD, "seconds": 2, "name": "a"}, KINDS)
    check_kinds({"count": 0, "seconds": 0}, KINDS, optional=("name",))
    check_values({"a": "b"}, str, "tools")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": True}, "it.count is True, expected a whole number of at least 0"),
        ({"count": -1}, "it.count is -1, expected a whole number of at least 0"),
        ({"count": 1.0}, "it.count is 1.0, expected a whole number"),
        ({"seconds": "1"}, "it.seconds is '1', expected a whole number of at least 0 or a number"),
        ({"name": []}, "it.name is [], expected a text or null"),
        ({"colour": 1}, "it: missing keys [], unknown keys ['colour']"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_another_kind_is_refused_by_its_key(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        check_kinds({**GOOD, **change}, KINDS, "it")


def test_a_missing_key_and_what_is_no_object_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^missing keys \['name', 'seconds'\], unknown keys \[\]"):
        check_kinds({"count": 1}, KINDS)
    with pytest.raises(ValueError, match=r"^it is \[1\], expected an object"):
        check_kinds([1], KINDS, "it")
    with pytest.raises(ValueError, match=r"^tools\.a is 3, expected a text"):
        check_values({"a": 3}, str, "tools")
