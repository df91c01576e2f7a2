"""Tests of gguf_tokenizer.py: the tokenizer of a GGUF file gives the ids of the model's own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.gguf_tokenizer import tokenizer_from_gguf
from tests.tensor_data import write_gguf

CORPUS = [
    "the quick brown fox jumps over the lazy dog; the dog doesn't mind, it's lazy.",
    "In 2024 and 2025, 1000 foxes jumped 3.14159 times over 12345 dogs (2024!).",
    "def f(x):\n\treturn x  # the  quick\n\n\nclass Fox:\r\n    pass",
    "naïve café, über; 柔道 柔道 and да 😀😀",
]
TEXTS = [
    *CORPUS,
    "",
    "the",
    " a space before it, and after it ",
    "  two   three    four",
    "\n\nlines\n \n\ttabs\r\n",
    "I'll DON'T we've it's",
    "7 42 2024 12345 1e-5 \u00b2\u0663",
    "\U0001f9d1\u200d\U0001f680 \u2764\ufe0f \u00e9 e\u0301",
    "日本語のテキスト العربية 한국어",
    "a\u00a0b\u3000c\u2581d",
    "<|im_start|>user\nhi<|im_end|>",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = "<think>"


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def transformers_ids(path: Path) -> Callable[[str], list[int]]:
    """Return transformers' own reading of the file's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


def trained_model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-level vocabulary and its merges, numbers of many digits among them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=CONTROL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    return vocab | {USER_DEFINED: len(vocab)}, [(a, b) for a, b in model["merges"]]


VOCAB, MERGES = trained_model()


def byte_level_metadata(pre: str) -> dict[str, object]:
    tokens = sorted(VOCAB, key=VOCAB.__getitem__)
    kinds = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL)
    kinds[USER_DEFINED] = gguf.TokenType.USER_DEFINED
    return {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kinds.get(t, gguf.TokenType.NORMAL)) for t in tokens],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def own_byte_level(*, splits_digits: bool) -> Tokenizer:
    """Return the tokenizer as a model of the GPT-2 kind ships it."""
    tokenizer = Tokenizer(models.BPE(VOCAB, MERGES))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split]) if splits_digits else split
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(USER_DEFINED, normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each way to split that is known."""
    folder = tmp_path_factory.mktemp("byte_level")
    names = ("gpt-2", "smollm", "llama-bpe")
    return {n: write_gguf(folder / f"{n}.gguf", byte_level_metadata(n)) for n in names}


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_byte_level_ids_are_those_of_transformers(byte_level: dict[str, Path], pre: str) -> None:
    ours, theirs = tokenizer_from_gguf(byte_level[pre]), transformers_ids(byte_level[pre])
    for text in TEXTS:
        assert ids(ours, text) == theirs(text), text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text("the 0123456789\n\t'"))
def test_byte_level_ids_are_those_of_the_model_s_own_tokenizer(
    byte_level: dict[str, Path], pre: str, text: str
) -> None:
    ours, own = tokenizer_from_gguf(byte_level[pre]), own_byte_level(splits_digits=pre == "smollm")
    for sample in (text, *TEXTS):
        assert ids(ours, sample) == ids(own, sample), sample


def test_the_ways_to_split_differ(byte_level: dict[str, Path]) -> None:
    spelled = {
        pre: tokenizer_from_gguf(path).encode("the 12345", add_special_tokens=False).tokens
        for pre, path in byte_level.items()
    }
    assert spelled["gpt-2"] == ["the", "\u012012345"]
    assert spelled["smollm"] == ["the", "\u0120", "1", "2", "3", "4", "5"]
    assert all("34" not in token for token in spelled["llama-bpe"])  # digits in threes


def test_llama_3_takes_a_known_word_whole_whatever_its_merges_say(tmp_path: Path) -> None:
    word = "quack"
    metadata = byte_level_metadata("llama-bpe")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    metadata |= {"tokenizer.ggml.tokens": [*tokens, word], "tokenizer.ggml.token_type": [*types, 1]}
    tokenizer = tokenizer_from_gguf(write_gguf(tmp_path / "a.gguf", metadata))
    assert ids(tokenizer, word) == [len(tokens)]
    metadata |= {"tokenizer.ggml.pre": "gpt-2"}
    tokenizer = tokenizer_from_gguf(write_gguf(tmp_path / "b.gguf", metadata))
    assert len(ids(tokenizer, word)) > 1


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_a_control_or_user_defined_token_is_never_cut(
    byte_level: dict[str, Path], pre: str
) -> None:
    tokenizer = tokenizer_from_gguf(byte_level[pre])
    for token in (*CONTROL, USER_DEFINED):
        assert VOCAB[token] in ids(tokenizer, f"the{token}dog")
        assert ids(tokenizer, token) == [VOCAB[token]]
    assert tokenizer.get_vocab_size(with_added_tokens=True) == len(VOCAB)


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_byte_level_ids_decode_to_the_text(byte_level: dict[str, Path], text: str) -> None:
    tokenizer = tokenizer_from_gguf(byte_level["smollm"])
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=False) == text


def test_no_bos_or_eos_is_added(byte_level: dict[str, Path]) -> None:
    tokenizer = tokenizer_from_gguf(byte_level["gpt-2"])
    assert tokenizer.encode("the").ids == ids(tokenizer, "the")


def sentencepiece_processor(*, adds_space: bool, spells_bytes: bool = True) -> object:
    """Train a sentencepiece BPE model with byte fallback, as Llama's and Mistral's are."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        vocab_size=420 if spells_bytes else 160,
        model_type="bpe",
        byte_fallback=spells_bytes,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=adds_space,
        character_coverage=1.0,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(processor: object, *, adds_space: bool) -> dict[str, object]:
    every = range(processor.vocab_size())
    return {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in every],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in every],
        "tokenizer.ggml.token_type": [token_type(processor, i) for i in every],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": adds_space,
    }


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A GGUF file of the sentencepiece kind, and sentencepiece itself."""
    processor = sentencepiece_processor(adds_space=True)
    metadata = sentencepiece_metadata(processor, adds_space=True)
    return write_gguf(tmp_path_factory.mktemp("pieces") / "a.gguf", metadata), processor


def test_sentencepiece_ids_are_those_of_transformers(pieces: tuple[Path, object]) -> None:
    ours, theirs = tokenizer_from_gguf(pieces[0]), transformers_ids(pieces[0])
    for text in TEXTS:
        if not text.startswith(" "):  # there transformers omits the prefix that sentencepiece adds
            assert ids(ours, text) == theirs(text), text


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text("the dogjumpsv \n\t0123\u67d4\u9053"))
def test_sentencepiece_ids_are_those_of_sentencepiece(
    pieces: tuple[Path, object], text: str
) -> None:
    tokenizer = tokenizer_from_gguf(pieces[0])
    for sample in (text, *TEXTS):
        assert ids(tokenizer, sample) == pieces[1].encode(sample), sample


def test_a_vocabulary_without_space_prefix_gets_none(tmp_path: Path) -> None:
    processor = sentencepiece_processor(adds_space=False)
    metadata = sentencepiece_metadata(processor, adds_space=False)
    tokenizer = tokenizer_from_gguf(write_gguf(tmp_path / "a.gguf", metadata))
    for text in TEXTS:
        assert ids(tokenizer, text) == processor.encode(text), text


def test_neighbouring_unknown_letters_are_one_unknown_token(tmp_path: Path) -> None:
    processor = sentencepiece_processor(adds_space=True, spells_bytes=False)
    metadata = sentencepiece_metadata(processor, adds_space=True)
    tokenizer = tokenizer_from_gguf(write_gguf(tmp_path / "a.gguf", metadata))
    assert ids(tokenizer, "the \u2603\u2603\u2603 dog").count(0) == 1
    for text in ("the \u2603\u2603\u2603 dog", *TEXTS[:-1]):
        assert ids(tokenizer, text) == processor.encode(text), text


def test_control_tokens_of_a_sentencepiece_vocabulary_are_never_cut(
    pieces: tuple[Path, object],
) -> None:
    tokenizer = tokenizer_from_gguf(pieces[0])
    assert [ids(tokenizer, t) for t in ("<unk>", "<s>", "</s>")] == [[0], [1], [2]]


def test_sentencepiece_ids_decode_to_the_text(pieces: tuple[Path, object]) -> None:
    tokenizer = tokenizer_from_gguf(pieces[0])
    for text in TEXTS:
        assert tokenizer.decode(ids(tokenizer, text)) == text.replace("\u2581", " ")


def token_type(processor: object, token_id: int) -> int:
    if processor.is_unknown(token_id):
        return int(gguf.TokenType.UNKNOWN)
    if processor.is_control(token_id):
        return int(gguf.TokenType.CONTROL)
    return int(gguf.TokenType.BYTE if processor.is_byte(token_id) else gguf.TokenType.NORMAL)


BYTE_LEVEL_FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "kind": ({"tokenizer.ggml.model": "t5"}, r"model is 't5', expected \['gpt2', 'llama'\]"),
    "no kind": ({"tokenizer.ggml.model": None}, "the key tokenizer.ggml.model is missing"),
    "split": ({"tokenizer.ggml.pre": "tekken"}, "pre is 'tekken', expected .*'smollm'"),
    "no split": ({"tokenizer.ggml.pre": None}, "pre is None, expected .*'smollm'"),
    "a split that is no text": ({"tokenizer.ggml.pre": [1]}, r"pre is \[1\], expected .*'smollm'"),
    "a split of no model's": ({"tokenizer.ggml.pre": "default"}, "pre is 'default', expected"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "the key tokenizer.ggml.tokens is missing"),
    "numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokens holds 1, expected only str"),
    "fewer types": ({"tokenizer.ggml.token_type": [1, 1]}, "and 2 types, expected as many"),
    "a token twice": ({"tokenizer.ggml.tokens": ["a", "a"]}, "got 2 tokens, 1 of them different"),
    "no merges": ({"tokenizer.ggml.merges": None}, "the key tokenizer.ggml.merges is missing"),
    "odd merges": ({"tokenizer.ggml.merges": [1]}, "merges holds 1, expected only str"),
    "a merge of one": ({"tokenizer.ggml.merges": ["a"]}, "merges do not fit its tokens"),
    "a merge of three": ({"tokenizer.ggml.merges": ["t h e"]}, "merges do not fit its tokens"),
    "unknown merge": ({"tokenizer.ggml.merges": ["zq qz"]}, "merges do not fit its tokens"),
}


@pytest.mark.parametrize(("metadata", "message"), BYTE_LEVEL_FAULTS.values(), ids=BYTE_LEVEL_FAULTS)
def test_a_tokenizer_that_cannot_be_built_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", byte_level_metadata("gpt-2") | metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_from_gguf(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "the key tokenizer.ggml.scores is missing"),
        ([0.5], r"got 1 scores, expected \d+, one a token"),
        ([1], "scores holds 1, expected only float"),
    ],
)
def test_a_sentencepiece_vocabulary_without_its_scores_is_refused(
    tmp_path: Path, scores: object, message: str
) -> None:
    metadata = byte_level_metadata("gpt-2")
    metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_gguf(write_gguf(tmp_path / "a.gguf", metadata))
