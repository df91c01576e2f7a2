"""Tests of training on another device: nothing is left on the processor that is needed there.

The second device is `tests/far_device.py`'s, whose arithmetic is the processor's: what is trained
has to be the same to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import MistralModel

from nvembed_deploy.train import loop
from tests.far_device import FAR, FarTensor, far_device
from tests.train import pairs, runs

SECTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"dropout": 0.2},
    "batch": {"queries": 3, "chunk_tokens": 60, "live_tokens": 150},
    "optimizer": {"steps": 3},
}
"""Several chunks, of which some are computed twice."""
RUNS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "fp32"},
    "bfloat16 in less memory": {
        "precision": "bf16",
        "gradient_checkpointing": True,
        "shard": True,
    },
}


class Elsewhere(Accelerator):
    """One process whose device is the second one."""

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return FAR


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_stops_and_goes_on_there_trains_the_same(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # On a processor another attention is taken, whose sums are in another order.
    monkeypatch.setattr(MistralModel, "set_attn_implementation", lambda *_: None)
    data, run = pairs.write_pairs(tmp_path / "pairs.jsonl"), {**RUNS[name], "save_every": 2}
    here, there = (
        pairs.recipe(tiny_base, data, tmp_path / place, run=run, **SECTIONS)
        for place in ("here", "there")
    )
    loop.train(here)
    step, kinds = loop._Run._step, set[type]()

    def noted(run: loop._Run) -> object:
        if run.step == 2 and FarTensor not in kinds:
            kinds.update(type(x) for x in run.learner.state_dict().values())
            kinds.update(type(x["exp_avg"]) for x in run.optimizer.state.values())
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(loop._Run, "_step", noted)
    monkeypatch.setattr(loop, "Accelerator", Elsewhere)
    with far_device():
        with pytest.raises(KeyboardInterrupt):
            loop.train(there)
        loop.train(there, resume=True)
    assert kinds == {FarTensor}
    runs.assert_same(tmp_path / "here", tmp_path / "there")
