"""Tests of encoder.py: sentence-transformers' habits, on a graph whose answers are known."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy.errors import ArtifactError, InputError, MissingPackageError
from nvembed_deploy.runtimes import Encoder, RuntimeOptions, load_encoder
from nvembed_deploy.runtimes.embedding_precision import quantize_embeddings

OPTIONS = RuntimeOptions(device="cpu", threads=1)
# The same sums in another order, in float32 (measured 6e-8).
ROUNDING = 1e-6


@pytest.fixture
def encoder(toy_artifact: Path) -> Iterator[Encoder]:
    with load_encoder(toy_artifact, "onnx", options=OPTIONS) as opened:
        yield opened


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [
        " ".join(f"w{i}" for i in rng.integers(0, 50, size=rng.integers(1, 40)))
        for _ in range(count)
    ]


def test_one_text_gives_one_row_without_a_batch_axis(
    encoder: Encoder, expected_row: Callable[..., np.ndarray]
) -> None:
    row = encoder.encode("w1 w2")
    assert row.shape == (16,)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, expected_row("w1 w2"), atol=ROUNDING)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_many_texts_keep_their_order(
    encoder: Encoder, kind: Callable[..., list[str]], expected_row: Callable[..., np.ndarray]
) -> None:
    texts = random_texts(200)
    rows = encoder.encode(kind(texts))
    np.testing.assert_allclose(rows, [expected_row(t) for t in texts], atol=ROUNDING)


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (0, 16)), ({"truncate_dim": 5}, (0, 5)), ({"precision": "binary"}, (0, 2))],
)
def test_no_texts_give_an_empty_array_of_the_right_width(
    encoder: Encoder, options: dict[str, object], shape: tuple[int, int]
) -> None:
    assert encoder.encode([], **options).shape == shape


@pytest.mark.parametrize("batch_size", [1, 2, 7, None])
def test_a_row_does_not_depend_on_batch_mates(encoder: Encoder, batch_size: int | None) -> None:
    texts = random_texts(40)
    alone = np.stack([encoder.encode(text) for text in texts])
    together = encoder.encode(texts, batch_size=batch_size)
    np.testing.assert_allclose(together, alone, atol=ROUNDING)


def test_equal_texts_give_equal_rows(encoder: Encoder) -> None:
    rows = encoder.encode(["w1", "w1 w2 w3 w4", "w1"])
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize(
    "prefixes",
    [
        [{"instruction": "find"}, {"instruction": "match"}],
        [{"prompt": "find : "}, {"prompt": "match : "}],
        [{"prompt_name": "query"}, {"prompt_name": "passage"}],
    ],
    ids=["instruction", "prompt", "prompt_name"],
)
def test_what_comes_before_the_text_is_not_pooled(
    encoder: Encoder, prefixes: list[dict[str, str]]
) -> None:
    # The toy has no attention, so words that are not pooled cannot be told from each other.
    one, other = (encoder.encode("w1 w2", **prefix) for prefix in prefixes)
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - encoder.encode("w1 w2")).max() > 0.01


def test_a_prompt_may_be_named(encoder: Encoder) -> None:
    assert encoder.prompts == {"query": "find : ", "passage": "match : "}
    named = encoder.encode("w1", prompt_name="query")
    np.testing.assert_array_equal(named, encoder.encode("w1", prompt="find : "))


def test_prompts_are_literal_and_instructions_in_the_template(encoder: Encoder) -> None:
    room = {"max_length": len(["<s>", "find", ":", "w1", "</s>"])}
    for literal in ({"prompt_name": "query"}, {"prompt": "find : "}):
        np.testing.assert_allclose(
            encoder.encode("w1", **literal, **room), encoder.encode("w1", **literal), atol=ROUNDING
        )
    with pytest.raises(InputError, match="5 tokens are allowed and the prefix has 5"):
        encoder.encode("w1", instruction="find", **room)


def test_a_prompt_beats_its_name_with_a_warning(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        row = encoder.encode("w1", prompt_name="unknown", prompt="")
    assert "prompt_name='unknown' is not" in caplog.text
    np.testing.assert_array_equal(row, encoder.encode("w1"))


def test_an_unknown_prompt_name_lists_the_known_ones(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"'quary', expected one of \['passage', 'query'\]"):
        encoder.encode("w1", prompt_name="quary")
    with pytest.raises(InputError, match=r"\['query'\], expected one of"):
        encoder.encode(["w1"], prompt_name=["query"])


def test_an_instruction_and_a_prompt_together_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="both an instruction and a prompt"):
        encoder.encode("w1", instruction="find", prompt="match : ")


def test_queries_and_documents_take_their_prompts(encoder: Encoder) -> None:
    query, passage = (encoder.encode(["w1"], name) for name in ("query", "passage"))
    np.testing.assert_array_equal(encoder.encode_query(["w1"]), query)
    np.testing.assert_array_equal(encoder.encode_document(["w1"]), passage)
    plain = encoder.encode(["w1"], prompt="")
    np.testing.assert_array_equal(encoder.encode_query(["w1"], prompt=""), plain)
    asked = encoder.encode(["w1"], instruction="find")
    np.testing.assert_array_equal(encoder.encode_query(["w1"], instruction="find"), asked)


@pytest.mark.parametrize(("first", "second"), [("document", "passage"), ("passage", "corpus")])
def test_documents_take_the_first_of_several_prompts(
    make_toy_artifact: Callable[..., Path], first: str, second: str
) -> None:
    prompts = {second: "w1 " * 99, first: "match : "}  # the other would leave no room for a text
    with load_encoder(make_toy_artifact(prompts=prompts), "onnx", options=OPTIONS) as encoder:
        expected = encoder.encode("w1", prompt="match : ")
        np.testing.assert_array_equal(encoder.encode_document("w1"), expected)


def test_without_prompts_queries_and_documents_are_plain_texts(
    make_toy_artifact: Callable[..., Path],
) -> None:
    with load_encoder(make_toy_artifact(prompts={}), "onnx") as encoder:
        plain = encoder.encode("w1")
        np.testing.assert_array_equal(encoder.encode_query("w1"), plain)
        np.testing.assert_array_equal(encoder.encode_document("w1"), plain)


def test_truncation_comes_first_then_unit_length_then_codes(encoder: Encoder) -> None:
    texts = random_texts(120)
    whole = encoder.encode(texts)
    cut = encoder.encode(texts, truncate_dim=6)
    norm = np.linalg.norm(whole[:, :6], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, whole[:, :6] / norm, atol=ROUNDING)
    codes = encoder.encode(texts, truncate_dim=6, precision="int8")
    np.testing.assert_array_equal(codes, quantize_embeddings(cut, "int8"))


def test_without_normalisation_a_truncated_row_is_the_slice(encoder: Encoder) -> None:
    whole = encoder.encode(["w1", "w2 w3"])
    cut = encoder.encode(["w1", "w2 w3"], truncate_dim=6, normalize_embeddings=False)
    np.testing.assert_array_equal(cut, whole[:, :6])


@pytest.mark.parametrize("truncate_dim", [0, 17])
def test_a_width_that_is_not_there_is_refused(encoder: Encoder, truncate_dim: int) -> None:
    with pytest.raises(
        InputError, match=f"truncate_dim is {truncate_dim}, expected a whole number from 1 to 16"
    ):
        encoder.encode("w1", truncate_dim=truncate_dim)


@pytest.mark.parametrize("name", ["truncate_dim", "max_length", "batch_size"])
@pytest.mark.parametrize("value", ["8", 8.0])
def test_a_number_that_is_not_whole_is_refused_by_name(
    encoder: Encoder, name: str, value: Any
) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}, expected"):
        encoder.encode("w1", **{name: value})


@pytest.mark.parametrize("name", ["instruction", "prompt"])
def test_an_instruction_for_each_text_is_refused(encoder: Encoder, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is a list, expected one string for all texts"):
        encoder.encode(["w1", "w2"], **{name: ["a", "b"]})


def test_similarity_takes_tensors_of_any_format(encoder: Encoder) -> None:
    rows = encoder.encode(["w1", "w2"], convert_to_tensor=True)
    expected = encoder.similarity(rows, rows)
    half = rows.bfloat16().requires_grad_()
    np.testing.assert_allclose(encoder.similarity(half, half), expected, atol=0.01)


def test_one_text_may_be_binary(encoder: Encoder) -> None:
    assert encoder.encode("w1", precision="ubinary").shape == (2,)


def test_output_is_an_array_a_list_or_a_tensor(encoder: Encoder) -> None:
    rows = encoder.encode(["w1", "w2"])
    listed = encoder.encode(["w1", "w2"], convert_to_numpy=False)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(np.stack(listed), rows)
    torch = pytest.importorskip("torch")
    tensor = encoder.encode(["w1", "w2"], convert_to_tensor=True)
    assert torch.equal(tensor, torch.from_numpy(rows))


def test_a_tensor_without_torch_says_what_to_install(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match="needs torch"):
        encoder.encode("w1", convert_to_tensor=True)


def test_a_long_text_is_cut_to_max_length(encoder: Encoder) -> None:
    long, cut = " ".join(["w1", "w2", "w3", "w4"] * 30), "w1 w2 w3 w4 w1 w2"
    row = encoder.encode(long, max_length=8)
    np.testing.assert_allclose(row, encoder.encode(cut), atol=ROUNDING)
    assert np.isfinite(encoder.encode(long)).all()


def test_a_max_length_beyond_the_model_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="max_length is 65, expected a whole number from 3 to 64"):
        encoder.encode("w1", max_length=65)
    with pytest.raises(InputError, match="max_length is 2, expected a whole number from 3 to 64"):
        encoder.encode("w1", max_length=2)


def test_a_text_is_never_longer_than_the_runtime_takes(encoder: Encoder) -> None:
    encoder.runtime.max_tokens = 9
    assert encoder.max_seq_length == 9
    long = "w1 w2 w3 " * 9
    np.testing.assert_array_equal(encoder.encode(long), encoder.encode(long, max_length=9))


@pytest.mark.parametrize("inputs", [b"w1", ["w1", 3]])
def test_what_is_no_text_is_refused(encoder: Encoder, inputs: object) -> None:
    with pytest.raises(InputError, match=r"inputs is a bytes|inputs\[1\] is a int"):
        encoder.encode(inputs)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"precision": "fp8"}])
def test_unusable_options_are_refused_even_without_texts(
    encoder: Encoder, options: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        encoder.encode([], **options)


def test_an_embedding_that_is_not_finite_names_its_text(
    make_toy_artifact: Callable[..., Path],
) -> None:
    encoder = load_encoder(make_toy_artifact(infinite_word="w7"), "onnx", options=OPTIONS)
    with pytest.raises(ArtifactError, match="text 2 is not finite"):
        encoder.encode(["w1", "w2 w3", "w7", "w4"])


def test_similarity_is_the_cosine_of_every_pair(encoder: Encoder) -> None:
    rows = encoder.encode(random_texts(5))
    scores = encoder.similarity(3 * rows, rows[:2])
    np.testing.assert_allclose(scores, rows @ rows[:2].T, atol=ROUNDING)
    assert encoder.similarity(rows[0], rows[0]).shape == (1, 1)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(rows, 2 * rows[::-1]),
        np.diag(rows @ rows[::-1].T),
        atol=ROUNDING,
    )


def test_it_says_its_dimension_and_its_longest_text(encoder: Encoder) -> None:
    assert encoder.get_embedding_dimension() == 16
    assert encoder.max_seq_length == 64


def test_a_closed_encoder_says_so(toy_artifact: Path) -> None:
    with load_encoder(toy_artifact, "onnx") as encoder:
        encoder.encode("w1")
    with pytest.raises(InputError, match="is closed"):
        encoder.encode("w1")


@pytest.mark.parametrize("num_before", [2, 3000])
def test_a_broken_text_is_named_by_its_place_among_all(encoder: Encoder, num_before: int) -> None:
    texts = ["same"] * num_before + ["half a pair \ud83d"]
    with pytest.raises(InputError, match=rf"inputs\[{num_before}\] has half of a surrogate pair"):
        encoder.encode(texts)


def test_a_stream_gives_the_rows_of_encode(encoder: Encoder) -> None:
    texts = random_texts(40)
    cut = {"truncate_dim": 5}
    given = ({"instruction": "w3"}, {"prompt_name": "query"}, {"max_length": 9}, cut)
    for options in ({}, *given, {**cut, "normalize_embeddings": False}):
        rows = np.concatenate(list(encoder.encode_stream(iter(texts), **options)))
        np.testing.assert_allclose(rows, encoder.encode(texts, **options), atol=ROUNDING)


def test_a_stream_refuses_arguments_at_once_and_an_element_when_it_comes(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="one string"):
        encoder.encode_stream("w1")
    with pytest.raises(InputError, match="prompt_name is 'nope'"):
        encoder.encode_stream(["w1"], "nope")
    with pytest.raises(InputError, match=r"inputs\[1\] is a int"):
        list(encoder.encode_stream(["w1", 2]))


def test_a_stream_of_nothing_gives_nothing(encoder: Encoder) -> None:
    assert list(encoder.encode_stream([])) == []


def test_a_query_without_prompt_and_instruction_is_told(
    tiny_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load_encoder(tiny_artifact, device="cpu") as encoder:
        for given in ({"instruction": "find"}, {"prompt": ""}):
            encoder.encode_query("w1", **given)
        encoder.encode_document("w1")
        assert caplog.text == ""
        encoder.encode_query("w1")
    assert "no prompt 'query': give an instruction" in caplog.text
