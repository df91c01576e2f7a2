"""From a checkpoint to embeddings, through every stage, against the second implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.artifact import read_manifest
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.spec import PoolerForm, Precision
from nvembed_deploy.text import Tokenizer, collate
from tests import factories, reference

TEXTS = ["the cat sat on the mat", "", "🦀 emoji", "then there was another one " * 30, "a"]
INSTRUCTION = "Given a question, retrieve passages that answer the question"


def expected(checkpoint: Path, instruction: str = "") -> np.ndarray:
    """Return the second implementation's embeddings of TEXTS."""
    spec = factories.TINY
    tokenizer = Tokenizer.load(checkpoint / "tokenizer.json", spec.text)
    batch = collate(tokenizer.tokenize(TEXTS, instruction=instruction), spec.text.pad_id)
    inputs = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
    return reference.embed(spec, factories.weights(), inputs)


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_both_runtimes_agree_with_the_second_implementation(
    tiny_artifact: Path, tiny_assembled: Path, runtime: str, instruction: str
) -> None:
    with load_encoder(tiny_artifact, runtime) as encoder:
        got = encoder.encode(TEXTS, instruction=instruction or None)
    assert np.abs(got - expected(tiny_assembled, instruction)).max() <= 2e-6


def test_the_checkpoint_itself_encodes_through_torch(tiny_assembled: Path) -> None:
    with load_encoder(tiny_assembled) as encoder:
        got = encoder.encode(TEXTS)
    assert np.abs(got - expected(tiny_assembled)).max() <= 2e-6


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("pooler", list(PoolerForm))
@pytest.mark.parametrize("precision", list(Precision))
def test_every_recipe_exports_checks_itself_and_keeps_the_vectors(
    tmp_path: Path, tiny_assembled: Path, opset: int, pooler: PoolerForm, precision: Precision
) -> None:
    recipe = ExportRecipe(precision=precision, opset=opset, pooler=pooler)
    manifest = run_export(plan_export(tiny_assembled, recipe), tmp_path / "out")
    assert manifest.check is not None
    assert manifest.check["passed"]
    with load_encoder(tmp_path / "out", "torch") as encoder:
        got = encoder.encode(TEXTS)
    cosines = (got * expected(tiny_assembled)).sum(1)
    floor = {Precision.FP32: 0.9999995, Precision.FP16: 0.99999, Precision.BF16: 0.999}
    assert cosines.min() >= floor[precision]


def test_the_released_layout_exports(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run_export(plan_export(tiny_checkpoint, ExportRecipe()), tmp_path / "out")
    assert read_manifest(tmp_path / "out").spec.pooler == factories.TINY.pooler
    with load_encoder(tmp_path / "out") as encoder, load_encoder(tiny_checkpoint) as oracle:
        cosines = (encoder.encode(TEXTS) * oracle.encode(TEXTS)).sum(1)
    assert cosines.min() >= 0.99999


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_batch_mates_order_and_padding_do_not_matter(tiny_artifact: Path, runtime: str) -> None:
    texts = [f"{'word ' * (7 * i % 40)}number {i}" for i in range(64)]
    with load_encoder(tiny_artifact, runtime) as encoder:
        together = encoder.encode(texts, batch_size=64)
        reverse = encoder.encode(texts[::-1], batch_size=7)[::-1]
        alone = np.stack([encoder.encode(text) for text in texts])
    assert np.abs(together - alone).max() <= 2e-6
    assert np.abs(together - reverse).max() <= 2e-6
