"""This file owns Mistral-7B-v0.1's own tokenizer for tests, converted by the product's GGUF reader.

`mistral-common` ships the sentencepiece model; its pieces go into a GGUF file as llama.cpp writes
them, which `tokenizer_from_gguf` turns into a tokenizer.json.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import gguf
import pytest

from nvembed_deploy.gguf_tokenizer import tokenizer_from_gguf


def sentencepiece_model() -> Path:
    """Return the path of tokenizer.model.v1, or skip with the reason."""
    try:
        found = [f for f in files("mistral-common") or [] if f.name == "tokenizer.model.v1"]
    except PackageNotFoundError:
        pytest.skip("mistral-common is not installed: pip install -e '.[dev]'")
    return Path(str(found[0].locate()))


def write_tokenizer(folder: Path) -> Path:
    """Write Mistral-7B-v0.1's tokenizer.json into `folder`."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model()))
    ids = range(model.vocab_size())
    writer = gguf.GGUFWriter(str(folder / "vocabulary.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types([_type(model, i) for i in ids])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = folder / "tokenizer.json"
    tokenizer_from_gguf(folder / "vocabulary.gguf").save(str(path))
    return path


def _type(model: object, token_id: int) -> int:
    if model.is_unknown(token_id):
        return gguf.TokenType.UNKNOWN
    if model.is_control(token_id):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if model.is_byte(token_id) else gguf.TokenType.NORMAL
