"""The text contract: token ids, lengths and masks, to the token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed_deploy.errors import ArtifactError, InputError, TextError
from nvembed_deploy.spec import TextSpec, Truncation
from nvembed_deploy.text import Tokenizer, Tokens, _pieces, collate
from tests import factories, mistral

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mistral_ids.json").read_text())
QUERIES = [
    "are judo throws allowed in wrestling?",
    "how to become a radiology technician in michigan?",
]
INSTRUCTION = "Given a question, retrieve passages that answer the question"
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def mistral_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mistral.write_tokenizer(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def real(mistral_json: Path) -> Tokenizer:
    return Tokenizer.load(mistral_json, TextSpec(), vocab_size=32000)


@pytest.fixture(scope="module")
def tiny_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.write_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer.json")


@pytest.fixture(scope="module")
def tiny(tiny_json: Path) -> Tokenizer:
    return Tokenizer.load(tiny_json, TextSpec(max_tokens=64))


class TestMistral:
    def test_queries_have_the_ids_of_nv_embed(self, real: Tokenizer) -> None:
        tokens = real.tokenize(QUERIES, INSTRUCTION)
        assert [t.ids.tolist() for t in tokens] == GOLDEN["queries"]
        assert [len(t.ids) for t in tokens] == [28, 32]

    def test_the_instruction_is_18_tokens_and_the_first_pooled_one_is_the_first_word(
        self, real: Tokenizer, mistral_json: Path
    ) -> None:
        tokens = real.tokenize(QUERIES, INSTRUCTION)
        assert {t.num_masked for t in tokens} == {18}
        pieces = json.loads(mistral_json.read_text())["model"]["vocab"]
        assert [t.ids[18] for t in tokens] == [pieces["\u2581are"], pieces["\u2581how"]]

    def test_passages_have_the_ids_of_nv_embed(self, real: Tokenizer, mistral_json: Path) -> None:
        raw = json.loads(mistral_json.read_text())
        assert raw["normalizer"]["normalizers"][0] == {"type": "Prepend", "prepend": "\u2581"}
        texts = [decode(mistral_json, ids[1:-1]) for ids in GOLDEN["passages"]]
        tokens = real.tokenize(texts)
        assert [t.ids.tolist() for t in tokens] == GOLDEN["passages"]
        assert [len(t.ids) for t in tokens] == [114, 162]
        assert {t.num_masked for t in tokens} == {0}

    def test_k_is_18_whatever_the_text_begins_with(self, real: Tokenizer) -> None:
        texts = ["", "7 days", "\u67d4\u9053", "\nnew line", " space", "\U0001f600"]
        assert {t.num_masked for t in real.tokenize(texts, INSTRUCTION)} == {18}

    def test_ids_equal_sentencepiece_s_own(self, real: Tokenizer) -> None:
        sentencepiece = pytest.importorskip("sentencepiece")
        model = sentencepiece.SentencePieceProcessor(model_file=str(mistral.sentencepiece_model()))
        texts = [
            "Hello, world",
            "3.14159 and 2\u00b2",
            "na\u00efve caf\u00e9",
            "\U0001f600\U0001f9d1\u200d\U0001f680",
            "def f(x):\n\treturn x",
            "a  b   c",
        ]
        got = [t.ids[1:-1].tolist() for t in real.tokenize(texts)]
        assert got == [model.encode(text) for text in texts]


def decode(tokenizer_json: Path, ids: list[int]) -> str:
    import tokenizers

    return str(tokenizers.Tokenizer.from_file(str(tokenizer_json)).decode(ids))


class TestTokenize:
    def test_a_text_stands_between_bos_and_eos(self, tiny: Tokenizer) -> None:
        (tokens,) = tiny.tokenize(["hello"])
        assert tokens.ids[0] == BOS
        assert tokens.ids[-1] == EOS
        assert EOS not in tokens.ids[1:-1]
        assert tokens.num_masked == 0

    def test_an_empty_text_is_bos_and_eos(self, tiny: Tokenizer) -> None:
        assert tiny.tokenize([""])[0].ids.tolist() == [BOS, EOS]

    def test_no_text_is_no_tokens(self, tiny: Tokenizer) -> None:
        assert tiny.tokenize([]) == []

    def test_an_instruction_is_put_into_the_template(self, tiny: Tokenizer) -> None:
        with_instruction = tiny.tokenize(["hi"], "find it")[0]
        spelled_out = tiny.tokenize(["Instruct: find it\nQuery: hi"])[0]
        literal = tiny.tokenize(["hi"], prompt="Instruct: find it\nQuery: ")[0]
        assert with_instruction.ids.tolist() == spelled_out.ids.tolist() == literal.ids.tolist()
        assert with_instruction.num_masked == literal.num_masked > 0 == spelled_out.num_masked

    def test_braces_in_an_instruction_are_just_text(self, tiny: Tokenizer) -> None:
        braces = tiny.tokenize(["hi"], "find {x} in {}")[0]
        literal = tiny.tokenize(["Instruct: find {x} in {}\nQuery: hi"])[0]
        assert braces.ids.tolist() == literal.ids.tolist()

    def test_an_eos_written_in_the_text_is_the_token(self, tiny: Tokenizer) -> None:
        assert tiny.tokenize(["a</s>b"])[0].ids.tolist().count(EOS) == 2

    @pytest.mark.parametrize(
        "text", ["\x00", "a\x00b", "\U0001f600" * 40, "\u202e", "\ufeff", "\n\t "]
    )
    def test_odd_texts_have_tokens(self, tiny: Tokenizer, text: str) -> None:
        assert len(tiny.tokenize([text])[0].ids) > 2

    def test_a_huge_text_is_cut(self, tiny: Tokenizer) -> None:
        assert len(tiny.tokenize(["the word " * 200_000])[0].ids) == 64

    @settings(deadline=None, max_examples=60)
    @given(st.text(max_size=80), st.text(max_size=20))
    def test_every_unicode_text_leaves_something_to_pool(
        self, tiny_json: Path, text: str, instruction: str
    ) -> None:
        tokenizer = Tokenizer.load(tiny_json, TextSpec())
        batch = collate(tokenizer.tokenize([text, ""], instruction), pad_id=2)
        assert batch.pool_mask_BS.sum(1).min() >= 1
        assert (batch.pool_mask_BS <= batch.attention_mask_BS).all()


class TestTruncation:
    def test_a_cut_text_keeps_its_eos(self, tiny: Tokenizer) -> None:
        whole = tiny.tokenize(["abcdefghij"])[0].ids.tolist()
        cut = tiny.tokenize(["abcdefghij"], max_tokens=6)[0].ids.tolist()
        assert cut == [*whole[:5], EOS]

    def test_the_reference_mode_loses_it_as_nv_embed_does(self, tiny_json: Path) -> None:
        spec = TextSpec(truncation=Truncation.REFERENCE)
        tokenizer = Tokenizer.load(tiny_json, spec)
        whole = tokenizer.tokenize(["abcdefghij"])[0].ids.tolist()
        assert tokenizer.tokenize(["abcdefghij"], max_tokens=6)[0].ids.tolist() == whole[:6]

    @pytest.mark.parametrize("truncation", list(Truncation))
    def test_a_text_that_just_fits_is_whole(self, tiny_json: Path, truncation: Truncation) -> None:
        tokenizer = Tokenizer.load(tiny_json, TextSpec(truncation=truncation))
        whole = tokenizer.tokenize(["abcdefghij"])[0].ids
        fitting = tokenizer.tokenize(["abcdefghij"], max_tokens=len(whole))[0].ids
        assert fitting.tolist() == whole.tolist()

    @pytest.mark.parametrize("truncation", list(Truncation))
    def test_an_instruction_that_fills_the_limit_is_refused(
        self, tiny_json: Path, truncation: Truncation
    ) -> None:
        """This tokenizer keeps the template's last space apart from the text."""
        tokenizer = Tokenizer.load(tiny_json, TextSpec(truncation=truncation))
        k = tokenizer.tokenize(["x"], "a long instruction")[0].num_masked
        limit = k + 2 if truncation is Truncation.KEEP_EOS else k + 1
        with pytest.raises(TextError, match=rf"inputs\[0\] .* prefix has {k}, so that nothing"):
            tokenizer.tokenize(["some text"], "a long instruction", max_tokens=limit)
        tokenizer.tokenize(["some text"], "a long instruction", max_tokens=limit + 1)

    def test_a_prefixs_space_that_joins_the_text_is_of_the_text(self, real: Tokenizer) -> None:
        k = real.tokenize(["x"], INSTRUCTION)[0].num_masked
        one, other = real.tokenize(QUERIES, INSTRUCTION, max_tokens=k + 2)
        assert one.ids[k] != other.ids[k]

    def test_fewer_than_three_tokens_are_refused(self, tiny: Tokenizer) -> None:
        with pytest.raises(InputError, match="max_tokens is 2, expected at least 3"):
            tiny.tokenize(["x"], max_tokens=2)


class TestFaults:
    def test_half_a_surrogate_pair_is_refused_with_its_place(self, tiny: Tokenizer) -> None:
        with pytest.raises(TextError, match=r"inputs\[2\] has half .*'\\ud83d', at character 3"):
            tiny.tokenize(["fine", "also \U0001f600", "bad\ud83d"])

    def test_a_bad_instruction_is_not_blamed_on_a_text(self, tiny: Tokenizer) -> None:
        with pytest.raises(InputError, match="the instruction or prompt has half"):
            tiny.tokenize(["fine"], "bad\udc00")

    @pytest.mark.parametrize("value", [None, 3, b"bytes", ["list"]])
    def test_what_is_no_string_is_refused_with_its_type(
        self, tiny: Tokenizer, value: object
    ) -> None:
        with pytest.raises(TextError, match=rf"inputs\[1\] is a {type(value).__name__}, expected"):
            tiny.tokenize(["fine", value])  # type: ignore[list-item]

    def test_texts_are_tokenised_in_pieces_and_faults_named_in_all(
        self, tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = ["one text", "", "a longer text of words", *["x"] * 20, "the last"]
        whole = [t.ids.tolist() for t in tiny.tokenize(texts, "find")]
        monkeypatch.setattr("nvembed_deploy.text._PIECE_CHARACTERS", 9)
        assert [t.ids.tolist() for t in tiny.tokenize(texts, "find")] == whole
        assert list(_pieces(texts)) == [(0, 3), (3, 12), (12, 21), (21, 24)]
        with pytest.raises(TextError, match=r"inputs\[24\] has half"):
            tiny.tokenize([*texts, "\ud83d"])

    def test_the_place_of_a_text_can_be_moved(self) -> None:
        moved = TextError(1, "is wrong", "drop it").at(7)
        assert (moved.index, moved.problem, moved.fix) == (7, "inputs[7] is wrong", "drop it")

    def test_a_missing_tokenizer_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"nothing\.json"):
            Tokenizer.load(tmp_path / "nothing.json", TextSpec())

    def test_a_path_that_is_not_utf8_is_what_is_named(self) -> None:
        with pytest.raises(ArtifactError, match=r"a\\udcff/tokenizer\.json' is no UTF-8") as caught:
            Tokenizer.load(Path("a\udcff") / "tokenizer.json", TextSpec())
        assert "rename the folder" in caught.value.fix

    def test_a_damaged_tokenizer_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text('{"model": {')
        with pytest.raises(ArtifactError, match=r"tokenizer\.json: cannot be read"):
            Tokenizer.load(tmp_path / "tokenizer.json", TextSpec())

    @pytest.mark.parametrize("name", ["bos_id", "eos_id", "pad_id"])
    def test_a_special_token_it_does_not_have_is_named(self, tiny_json: Path, name: str) -> None:
        spec = replace(TextSpec(), **{name: 90000})
        with pytest.raises(ArtifactError, match=f"{name} is 90000, which this tokenizer of"):
            Tokenizer.load(tiny_json, spec)

    def test_ids_beyond_the_embedding_table_are_refused(self, tiny_json: Path) -> None:
        with pytest.raises(ArtifactError, match=r"greatest id is .* embedding table ends at 99"):
            Tokenizer.load(tiny_json, TextSpec(), vocab_size=100)


class TestCollate:
    def test_texts_are_padded_on_the_right(self) -> None:
        batch = collate([tokens([1, 7, 2]), tokens([1, 7, 8, 9, 2], num_masked=2)], pad_id=0)
        assert batch.input_ids_BS.tolist() == [[1, 7, 2, 0, 0], [1, 7, 8, 9, 2]]
        assert batch.attention_mask_BS.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        assert batch.pool_mask_BS.tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
        assert (batch.num_texts, batch.num_tokens) == (2, 8)

    def test_a_real_eos_counts_where_padding_with_the_same_id_does_not(self) -> None:
        batch = collate([tokens([1, 7, 2]), tokens([1, 7, 8, 9, 2])], pad_id=2)
        assert batch.input_ids_BS.tolist() == [[1, 7, 2, 2, 2], [1, 7, 8, 9, 2]]
        assert batch.attention_mask_BS.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]

    def test_arrays_are_int64(self) -> None:
        batch = collate([tokens([1, 2])], pad_id=2)
        arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        assert {a.dtype for a in arrays} == {np.dtype(np.int64)}

    def test_a_text_that_is_all_instruction_is_refused_as_its_mean_is_not_defined(self) -> None:
        with pytest.raises(InputError, match="text 1 has 2 tokens and 2 of them are instruction"):
            collate([tokens([1, 2]), tokens([1, 2], num_masked=2)], pad_id=2)

    def test_an_empty_batch_is_refused(self) -> None:
        with pytest.raises(InputError, match="got no text"):
            collate([], pad_id=2)


def tokens(ids: list[int], num_masked: int = 0) -> Tokens:
    return Tokens(np.array(ids, np.int64), num_masked)
