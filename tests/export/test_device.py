"""Tests of calibrating on another device: nothing is left on the processor that is needed there.

The second device is `tests/far_device.py`'s, whose arithmetic is the processor's: what is written
has to be the same to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.errors import HardwareError
from nvembed_deploy.export.__main__ import main
from nvembed_deploy.export.blocks import Blocks
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import load_recipe
from tests.far_device import FarTensor, far_device

RECIPES: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fp8 with attention and a share kept": {"fp8_attention": True, "keep_share": 0.2},
    "int8": {},
    "int8 with one range": {"activations": "static"},
    "int8-cpu": {},
    "int8-weight": {},
    "int4-weight": {"keep": ["pooler.values"]},
    "fp8 to nearest with a share kept": {"rounding": "nearest", "keep_share": 0.2},
}


def export(checkpoint: Path, out: Path, values: dict[str, Any]) -> bytes:
    run_export(plan_export(checkpoint, load_recipe(None, values)), out)
    return (out / LAYOUT.weights).read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_an_export_calibrated_there_is_the_same(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    values = {"precision": name.split(maxsplit=1)[0], "calibration_texts": 24, **RECIPES[name]}
    here = export(tiny_checkpoint, tmp_path / "here", values)
    kinds: set[type] = set()
    through = Blocks.through

    def noted(self: Blocks, *args: Any) -> Any:
        for states in through(self, *args):
            kinds.add(type(states))
            yield states

    monkeypatch.setattr(Blocks, "through", noted)
    with far_device():
        there = export(tiny_checkpoint, tmp_path / "there", {**values, "device": "cuda"})
    assert kinds == {FarTensor}
    assert there == here


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    ],
    ids=["of torch", "of cuSOLVER"],
)
def test_a_device_that_is_full_is_told(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    error: RuntimeError,
) -> None:
    def fill(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Blocks, "layer", fill)
    argv = [str(tiny_checkpoint), str(tmp_path / "out"), "--precision", "int8-weight"]
    with far_device():
        assert main([*argv, "--device", "cuda"]) == 3
    said = capsys.readouterr().err
    assert f"device 'cuda' has too little memory: {error}" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    tiny_checkpoint: Path,
) -> None:
    recipe = load_recipe(None, {"precision": "fp8", "device": "cuda"})
    with pytest.raises(HardwareError, match="torch cannot use device 'cuda'"):
        plan_export(tiny_checkpoint, recipe)
