"""The texts: their lengths, their order, and that a seed gives the same ones again."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.bench.mixes import DEFAULT, REAL, SHAPES, check_mix, check_mixes, make_mix
from nvembed_deploy.errors import InputError, RecipeError


def lengths(texts: list[str]) -> list[int]:
    """Count a word as a token, and BOS and EOS."""
    return [len(text.split()) + 2 for text in texts]


def test_lengths_are_spread_evenly_though_counts_end_at_the_models_longest() -> None:
    mix = make_mix("queries", lambda texts: [min(n, 4096) for n in lengths(texts)], 4096)
    found = sorted(lengths([text.text for text in mix.texts]))
    quarters = [found[len(found) * i // 4] for i in (1, 2, 3)]
    assert quarters == pytest.approx([16, 24, 32], abs=2.5)


@pytest.mark.parametrize("name", SHAPES)
def test_the_texts_of_a_mix_are_as_long_as_it_says(name: str) -> None:
    shape = SHAPES[name]

    def uneven(texts: list[str]) -> list[int]:  # some drafts come out too long
        return [len(text) // 4 + 2 for text in texts]

    found = uneven([text.text for text in make_mix(name, uneven, 4096).texts])
    assert shape.low <= min(found) <= shape.low * 1.3
    assert shape.high >= max(found) >= shape.high * 0.7
    assert len(found) == shape.most_texts


def test_a_seed_gives_the_same_texts_and_another_gives_others() -> None:
    mixes = [make_mix("queries", lengths, 4096, seed) for seed in (0, 0, 1)]
    assert mixes[0] == mixes[1] != mixes[2]


def test_queries_carry_an_instruction_and_passages_none() -> None:
    (instruction, texts), *others = make_mix("queries", lengths, 4096).groups(5)
    assert (len(texts), others) == (5, [])
    assert instruction
    assert make_mix("passages", lengths, 4096).groups(1)[0][0] == ""


def test_long_texts_fit_a_model_that_takes_less() -> None:
    assert max(lengths([t.text for t in make_mix("long", lengths, 1500).texts])) <= 1500


def test_a_model_too_short_for_a_mix_is_refused() -> None:
    with pytest.raises(InputError, match="the model takes 512 tokens"):
        make_mix("long", lengths, 512)


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "instruction": "find"}\n{"text": "c"}\n')
    mix = make_mix(str(path), lengths, 4096)
    assert mix.name == "mine"
    assert {k: sorted(v) for k, v in mix.groups(9)} == {"": ["a", "c"], "find": ["b"]}


def test_a_files_order_says_nothing_of_lengths_after_that(tmp_path: Path) -> None:
    path = tmp_path / "sorted.jsonl"
    path.write_text("".join(f'{{"text": "{"a " * n}"}}\n' for n in range(1, 33)))
    texts = [text.text for text in make_mix(str(path), lengths, 4096).texts]
    assert lengths(texts) != sorted(lengths(texts))


def test_the_real_mix_holds_both_kinds() -> None:
    assert {bool(text.instruction) for text in make_mix("real", lengths, 4096).texts} == {
        False,
        True,
    }


@pytest.mark.parametrize(("name", "kind"), [("querys", InputError), ("x.jsonl", InputError)])
def test_an_unknown_mix_is_refused(name: str, kind: type[Exception]) -> None:
    for ask in (check_mix, lambda mix: make_mix(mix, lengths, 4096)):
        with pytest.raises(kind, match="expected queries, passages, long, real"):
            ask(name)


def test_a_known_mix_needs_no_model_to_be_checked() -> None:
    for name in (*DEFAULT, REAL):
        check_mix(name)


def test_a_file_that_is_no_jsonl_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("no json\n")
    for ask in (check_mix, lambda mix: make_mix(mix, lengths, 4096)):
        with pytest.raises(RecipeError, match=r"mix .*mine.jsonl, line 1"):
            ask(str(path))


def test_mixes_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "a"}')
    check_mixes([str(path), "passages"])
    for names in ([str(path), "queries"], ["long", "long"]):
        with pytest.raises(InputError, match="two mixes are called"):
            check_mixes(names)
