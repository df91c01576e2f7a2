"""Tests of nvembed_deploy/train/data/overlap.py: copies go, what only shares a subject stays."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.overlap import evaluation_texts, near_duplicates
from tests.train.data import raw

HELD_OUT = "I felt so happy today because my sister came home from the long trip"
OTHERS = [*raw.ANIMALS, *raw.MONEY, *raw.PLANTS, "my sister has a long way home", "I felt sad"]


@pytest.mark.parametrize(
    "copy",
    [
        HELD_OUT,
        HELD_OUT.upper() + "!!",
        HELD_OUT.replace("so ", ""),
        HELD_OUT.replace("long", "short"),
        HELD_OUT + " yesterday",
        "today " + HELD_OUT.replace(" today", ""),
    ],
    ids=["same", "case", "word less", "word changed", "word more", "order"],
)
def test_a_near_copy_is_found(copy: str) -> None:
    assert near_duplicates([*OTHERS, copy], [HELD_OUT]) == {copy: HELD_OUT}


@pytest.mark.parametrize(
    ("held_out", "changed", "other"),
    [
        ("我今天非常高兴地回家了", "我今天非常开兴地回家了", "今天我妹妹很高兴"),
        ("今日は天気がいいので散歩", "今日は天気がいいので旅歩", "今日の天気予報は雨です"),
        ("오늘 날씨가 정말 좋네요", "오늘 날씨가 정말 춥네요", "내일 날씨가 추워요"),
        ("วันนี้อากาศดีมากเลยออกไปเดินเล่น", "วันนี้อากาศดีมากเลยออกไปเดินเต้น", "วันนี้ฝนตกหนักมากอยู่บ้าน"),
    ],
    ids=["Chinese", "Japanese", "Korean", "Thai"],
)
def test_a_near_copy_is_found_in_scripts_without_spaces(
    held_out: str, changed: str, other: str
) -> None:
    assert near_duplicates([*OTHERS, other, changed], [held_out]) == {changed: held_out}


@pytest.mark.parametrize("held_out", ["我今天非常高兴", "今日は天気がいい", "오늘 날씨가 좋네요"])
def test_a_long_text_has_all_the_characters_and_is_no_copy(held_out: str) -> None:
    other = "".join(f"{letter}的は을{i % 7}" for i, letter in enumerate(held_out * 20))
    assert near_duplicates([*OTHERS, other], [held_out]) == {}


def test_a_long_text_has_all_words_of_a_short_one_and_is_no_copy() -> None:
    page = " ".join(f"the ability to {verb} is to speak" for verb in raw.ANIMALS + raw.PLANTS)
    held_out = "the ability to speak"
    copies = [held_out.upper() + "!", held_out + " loudly", "speak: " + held_out]
    assert near_duplicates([*OTHERS, *copies, page], [held_out]).keys() == set(copies)


def test_words_that_differ_in_vowel_marks_are_others() -> None:
    held_out, other = "नीति की पूजा", "नाता के पाजी"  # n-t, k, p-j: the same consonants
    found = near_duplicates([*OTHERS, other, held_out + "।"], [held_out])
    assert found == {held_out + "।": held_out}


@pytest.mark.parametrize(
    "text", ["Έφυγα νωρίς από το σπίτι", "오늘 날씨가 정말 좋네요", "été à la plage"]
)
def test_the_way_unicode_is_written_hides_no_copy(text: str) -> None:
    copy = unicodedata.normalize("NFD", text)
    assert near_duplicates([*OTHERS, copy], [text]) == {copy: text}


@pytest.mark.parametrize(
    "text",
    [
        "My sister came home and I felt happy",
        "The trip home was long, and today I am tired of it all because of the rain",
        " ".join([*OTHERS, "and so", HELD_OUT, "and then", *OTHERS]),
    ],
    ids=["half of it", "same words, other matter", "a page that quotes it"],
)
def test_what_is_no_copy_stays(text: str) -> None:
    assert near_duplicates([*OTHERS, text], [HELD_OUT]) == {}


def test_a_copy_is_found_even_without_words_or_common_words_only() -> None:
    assert near_duplicates(["?!", "a", "b"], ["?!", " "]) == {"?!": "?!"}


def test_the_threshold_decides() -> None:
    text = "I felt so happy today because my sister came home"
    assert near_duplicates([*OTHERS, text], [HELD_OUT], 0.9) == {}
    assert near_duplicates([*OTHERS, text], [HELD_OUT], 0.5) == {text: HELD_OUT}


def test_evaluations_are_files_or_folders_of_them(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    raw.write(tmp_path / "task" / "a.jsonl", [{"text": "one", "split": "test"}, {"id": 7}])
    raw.write(tmp_path / "b.jsonl", [{"sentence1": "two", "sentence2": "three", "score": 1}])
    raw.write(tmp_path / "c.jsonl", [{"text": "train", "split": "train"}, {"text": "one"}])
    assert evaluation_texts(tmp_path, {"split": "test"}) == ["two", "three", "one"]
    assert evaluation_texts(tmp_path / "c.jsonl") == ["train", "one"]


def test_a_field_may_hold_several_texts(tmp_path: Path) -> None:
    row = {"query": "one", "positive": ["two", "three", 4], "negative": ["far"]}
    raw.write(tmp_path / "reranking.jsonl", [row, {"positive": ["five"]}])
    assert evaluation_texts(tmp_path / "reranking.jsonl") == ["one", "two", "three", "five"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("empty.jsonl", "holds no text"), ("bad.jsonl", "broken JSON"), ("gone", "is not a file")],
)
def test_an_evaluation_that_holds_nothing_is_no_evaluation(
    tmp_path: Path, name: str, problem: str
) -> None:
    raw.write(tmp_path / "empty.jsonl", [{"id": 1}])
    raw.write(tmp_path / "bad.jsonl", ["{"])
    with pytest.raises(InputError, match=problem) as caught:
        evaluation_texts(tmp_path / name)
    assert "--skip-bad" not in caught.value.fix  # an evaluation is read whole
