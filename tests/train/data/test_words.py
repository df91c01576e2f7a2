"""Tests of nvembed_deploy/train/data/words.py: the same words however they are written."""

from __future__ import annotations

import unicodedata

import pytest

from nvembed_deploy.train.data.words import normal, words

TEXTS = {
    "Don't stop, naïve 7": ["don", "t", "stop", "naïve", "7"],
    "STRASSE straße": ["strasse", "strasse"],
    "\uff21\uff22\uff23\uff11\uff12 \ufb01n": ["abc12", "fin"],
    "हिन्दी में लिखा": ["हिन्दी", "में", "लिखा"],
    "தமிழ் மொழி": ["தமிழ்", "மொழி"],
    "مُحَمَّد هنا": ["مُحَمَّد", "هنا"],
    "Έλληνες ёлка": ["έλληνεσ", "ёлка"],
    "我爱NLP。你呢": ["我", "爱", "nlp", "你", "呢"],
    "コーヒーをｶﾞ2杯": ["コ", "ー", "ヒ", "ー", "を", "ガ", "2", "杯"],
    "날씨가 좋다": ["날", "씨", "가", "좋", "다"],
    "ดีมาก ๆ ok": ["ดี", "ีม", "มา", "าก", "ๆ", "ok"],
    "ខ្ញុំ។ មាន": ["ខ្", "្ញ", "ញុ", "ុំ", "មា", "ាន"],
    "မြန်မာ၊ ကာ": ["မြ", "ြန", "န်", "်မ", "မာ", "ကာ"],
    "?! \u0301 ": [],
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=list(map(ascii, TEXTS)))
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_words_are_the_same_in_each_unicode_form(text: str, expected: list[str], form: str) -> None:
    written = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    assert words(written) == [unicodedata.normalize("NFKC", word) for word in expected]


def test_case_spaces_and_punctuation_make_no_difference() -> None:
    assert normal("Don't  STOP — ﬁnd it!") == normal("don t stop find it")
    assert normal("one") != normal("two")
    assert normal(":-) ") == normal(":-)") != normal(":-(")
