"""Tests of training on an NVIDIA GPU, against the same run on the processor."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("datasets", reason="pip install 'nvembed-deploy[train]'")
pytest.importorskip("pydantic", reason="pip install 'nvembed-deploy[train]'")

from nvembed_deploy.train.journal import read_log
from tests.train import pairs

SECTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"dropout": 0.0},
    "batch": {"queries": 6, "chunk_tokens": 60, "live_tokens": 150},
}
"""Several chunks, of which some are computed twice. Generators differ: nothing is dropped."""


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason=f"torch {torch.__version__} sees no CUDA device"
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_a_run_on_the_gpu_has_the_losses_of_one_on_the_processor(
    tiny_base: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """Two attentions on the processor differ by 1e-6 and 0.012 of the loss."""
    data = pairs.write_pairs(tmp_path / "pairs.jsonl")
    run = {"precision": precision, "gradient_checkpointing": True, "shard": True}
    losses = []
    for use_cpu in ("true", "false"):
        out = tmp_path / use_cpu
        values = pairs.values(tiny_base, data, out, **SECTIONS, run=run)
        recipe = pairs.write_toml(tmp_path / f"{use_cpu}.toml", values)
        environment = {**pairs.ENVIRONMENT, "ACCELERATE_USE_CPU": use_cpu}
        subprocess.run([*pairs.COMMAND, str(recipe)], env=environment, check=True)
        losses.append([record.loss for record in read_log(out)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
