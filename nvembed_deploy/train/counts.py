"""This file owns how counts are written: 1 example, 1,204 examples."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
