"""Tests of what transformers and optimum make of an artifact's files.

optimum-onnx pins an old transformers, so it lives in an environment of its own: name that
environment's interpreter in NVEMBED_OPTIMUM_PYTHON.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from nvembed_deploy import load_encoder
from nvembed_deploy.text import Tokenizer
from tests import factories

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("NVEMBED_OPTIMUM_PYTHON", sys.executable)
TEXTS = [
    "Instruct: Given a question, retrieve passages that answer the question\nQuery: ",
    "which planet has rings?",
    "Saturn has rings of ice and rock.",
    "An egg boils in six minutes.",
]


def snippet() -> str:
    """Return the Python block of the page's section about optimum."""
    page = (ROOT / "docs/artifact.md").read_text(encoding="utf-8")
    section = page.partition("\n## With optimum\n")[2]
    return re.findall(r"```python\n(.*?)```", section, re.S)[0]


def has_optimum() -> bool:
    command = [PYTHON, "-c", "import optimum.onnxruntime"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_transformers_finds_the_roles_of_the_tokens(tiny_artifact: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_artifact)
    roles = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    text = factories.TINY.text
    assert roles == (text.bos_id, text.eos_id, text.pad_id)
    assert tokenizer.padding_side == "right"
    assert tokenizer.model_max_length == text.max_tokens
    raw = Tokenizer.load(tiny_artifact / "tokenizer.json", text).tokenize(TEXTS)
    theirs = tokenizer(TEXTS, add_special_tokens=False)
    assert set(theirs) == {"input_ids", "attention_mask"}
    assert theirs["input_ids"] == [tokens.ids[1:-1].tolist() for tokens in raw]


def test_transformers_reads_the_sizes(tiny_artifact: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_artifact)
    assert config.hidden_size == factories.TINY.backbone.hidden_size
    assert config.sliding_window is None


def test_the_snippet_of_the_page_gives_what_the_encoder_gives(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    if not has_optimum():
        pytest.skip(f"{PYTHON} has no optimum-onnx; name one in NVEMBED_OPTIMUM_PYTHON")
    (tmp_path / "artifact").symlink_to(tiny_artifact)
    script = snippet() + "\nimport numpy\nnumpy.savez('rows.npz', query=query, passages=passages)\n"
    subprocess.run([PYTHON, "-c", script], cwd=tmp_path, check=True)
    rows = np.load(tmp_path / "rows.npz")
    instruction = TEXTS[0].removeprefix("Instruct: ").removesuffix("\nQuery: ")
    with load_encoder(tiny_artifact, "onnx", device="cpu") as encoder:
        query = encoder.encode(TEXTS[1:2], instruction=instruction)
        passages = encoder.encode(TEXTS[2:])
    # Equal bits with the same onnxruntime (1.32); others may sum in another order.
    np.testing.assert_allclose(rows["query"], query, atol=2e-6)
    np.testing.assert_allclose(rows["passages"], passages, atol=2e-6)
