"""Every competitor computes the model that we compute, however it batches and pads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.bench.side import COMPETITORS, Side
from nvembed_deploy.bench.subject import open_subject

INSTRUCTION = "find the text that answers"
TEXTS = ["the cat sat on a mat", "many words " * 20, "a", "another text of words"]
FLOOR = {"fp32": 1 - 1e-6, "bf16": 0.999}


@pytest.mark.parametrize("instruction", ["", INSTRUCTION], ids=["passages", "queries"])
@pytest.mark.parametrize("kind", COMPETITORS)
def test_a_competitor_embeds_as_ours_does(
    kind: str, instruction: str, prepared: Path, tiny_artifact: Path
) -> None:
    ours = open_subject(Side("ours", path=str(tiny_artifact), runtime="onnx", device="cpu"))
    theirs = open_subject(Side(kind, kind=kind, path=str(prepared), device="cpu", threads=1))
    got_ND, expected_ND = theirs.encode(TEXTS, instruction), ours.encode(TEXTS, instruction)
    assert (got_ND * expected_ND).sum(1).min() >= FLOOR[theirs.facts["dtype"]]
    assert np.allclose(np.linalg.norm(got_ND, axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("instruction", ["", INSTRUCTION], ids=["passages", "queries"])
def test_a_competitor_reads_the_tokens_that_ours_does(
    instruction: str, prepared: Path, tiny_artifact: Path
) -> None:
    ours = open_subject(Side("ours", path=str(tiny_artifact), runtime="onnx", device="cpu"))
    theirs = open_subject(Side("t", kind="onnx-traced", path=str(prepared), device="cpu"))
    assert ours.tokenize is not None
    assert theirs.tokenize is not None
    assert theirs.tokenize(TEXTS, instruction) == ours.tokenize(TEXTS, instruction)
