"""This file owns what kind of value JSON must hold under each key, and the refusal of another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any

Kinds = Mapping[str, type | tuple[type, ...]]
"""A kind, or several, for each key."""

_WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number of at least 0",
    float: "a number",
    NoneType: "null",
}


def check_kinds(
    data: Any,  # noqa: ANN401 - JSON
    kinds: Kinds,
    where: str = "",
    optional: Collection[str] = (),
) -> None:
    """Check that an object has the keys it should, and under each a value of its kind.

    Whole numbers count things: none is negative.

    Args:
        data: parsed JSON.
        kinds: what is expected.
        where: what the object is called; empty for the outermost.
        optional: keys that need not be there.

    Raises:
        ValueError: it has not; the message names the key, what is there and what was expected.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r:.80}, expected an object")  # noqa: TRY004 - JSON
    missing = sorted(kinds.keys() - data.keys() - set(optional))
    unknown = sorted(data.keys() - kinds.keys())
    if missing or unknown:
        in_it = f"{where}: " if where else ""
        raise ValueError(f"{in_it}missing keys {missing}, unknown keys {unknown}")
    for key, value in data.items():
        kind = kinds[key]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in allowed or (type(value) is int and value < 0):
            name = f"{where}.{key}" if where else key
            expected = " or ".join(_WORDS[each] for each in allowed)
            raise ValueError(f"{name} is {value!r:.80}, expected {expected}")


def check_values(data: dict[str, Any], kind: type, where: str) -> None:
    """Check that all values of an object of any keys are of one kind.

    Raises:
        ValueError: one is not.
    """
    check_kinds(data, dict.fromkeys(data, kind), where)
