"""This file owns what the words of a text are, where texts are compared by words.

Case, punctuation and Unicode's ways to write one character do not count. Where a script has no
spaces, or endings that are part of the word, characters stand for words.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

_ALONE = (
    r"\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Chinese characters, kana and Hangul: each is a word. Of 60 Chinese sentences of 9 to 12
characters of which one was changed, `overlap.py` finds all so, 29 by pairs of characters."""
_IN_PAIRS = r"\u0e01-\u0e3a\u0e40-\u0e5b\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17dd"
"""Thai, Lao, Burmese and Khmer: letters are too few to tell texts apart, so two in a row are a
word."""


def words(text: str) -> list[str]:
    """Return the words of a text in order; none if it has neither letters nor digits."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = []
    for word in _pattern().finditer(folded):
        found += _pairs(word[0]) if word[1] else [word[0]]
    return found


def normal(text: str) -> str:
    """Return what two texts share if they differ in case, spaces and punctuation only.

    A text without words is itself.
    """
    return " ".join(words(text)) or text.strip()


@cache
def _pattern() -> re.Pattern[str]:
    r"""Return what a word is: letters and digits, with the marks on them, which `\w` has not.

    In Hindi, Tamil or vocalised Arabic each word would fall to pieces without its marks.
    """
    codes = map(chr, range(sys.maxunicode + 1))
    marks = "".join(code for code in codes if unicodedata.category(code).startswith("M"))
    letter = rf"[^\W{_ALONE}{_IN_PAIRS}]"
    return re.compile(rf"[{_ALONE}]|([{_IN_PAIRS}]+)|{letter}+(?:[{marks}]+{letter}*)*")


def _pairs(letters: str) -> list[str]:
    """Return each two letters in a row; a single one is alone."""
    return [letters[i : i + 2] for i in range(max(len(letters) - 1, 1))]
