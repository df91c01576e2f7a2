"""The parity gate as a CI job: graphs of the real 135M model pass, a broken one does not.

Weights go to the nearest code here and two tasks are run, so that all of it takes minutes on two
cores; test_parity.py judges the calibrated graphs on the whole suite.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import demo
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.parity.__main__ import main
from nvembed_deploy.spec import PoolerSpec, Pooling

TASKS = ("--task", "wordnet_pairs", "--task", "debian_retrieval")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's embeddings, computed once."""
    return tmp_path_factory.mktemp("cache")


def judge(checkpoint: Path, folder: Path, precision: str, *options: object) -> int:
    """Export `checkpoint` to `folder` and ask the gate; print its verdict."""
    values = {"precision": precision}
    if precision not in ("fp32", "fp16"):
        values["rounding"] = "nearest"
    run_export(plan_export(checkpoint, load_recipe(None, values)), folder)
    return main([str(word) for word in (folder, *TASKS, *options)])


@pytest.mark.parametrize(
    ("precision", "margin"),
    [("fp32", 5e-4), ("fp16", 5e-4), ("int8", 0.05), ("int8-cpu", 0.05), ("fp8", 0.05)],
)
def test_a_graph_of_the_real_model_passes(  # noqa: PLR0913, PLR0917 - fixtures
    checkpoint: Path, cache: Path, tmp_path: Path, precision: str, margin: float, capfd
) -> None:
    """At 16 bit by the default margins; at 8 by what 60 queries and 60 pairs can show."""
    options = ("--reference", checkpoint, "--cache", cache, "--margin", margin)
    code = judge(checkpoint, tmp_path / precision, precision, *options)
    out = capfd.readouterr().out
    with capfd.disabled():
        print(out)
    assert code == 0
    manifest = json.loads((tmp_path / precision / "manifest.json").read_text("utf-8"))
    assert manifest["parity"]["passed"] is True


def test_an_export_that_forgot_the_adapter_does_not(
    checkpoint: Path, cache: Path, tmp_path: Path, capfd
) -> None:
    model = json.loads((demo.TRAINED / "model.json").read_text("utf-8"))
    bare = tmp_path / "bare"
    parts = Parts(
        demo.fetch(checkpoint.parent),
        pooler=demo.TRAINED / "pooler.safetensors",
        pooler_spec=PoolerSpec(**model["pooler_spec"] | {"pooling": Pooling.LATENT}),
        name=model["name"],
    )
    assemble_checkpoint(parts, bare)
    assert judge(bare, tmp_path / "out", "fp32", "--reference", checkpoint, "--cache", cache) == 1
    assert "it may not replace" in capfd.readouterr().out
