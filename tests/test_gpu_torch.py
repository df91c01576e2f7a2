"""The GPU benchmark, run here on a tiny model so that it is known to run before a GPU sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_torch, random_tensor
from nvembed_deploy.model.packed.linear import WideLinear


def test_every_side_agrees_with_the_reference_and_is_timed(tmp_path: Path, capsys):
    out = tmp_path / "result.json"
    words = ["--device", "cpu", "--tiny", "--seconds", "0", "--json", str(out)]
    assert gpu_torch.main(words) == 0
    result = json.loads(out.read_text("utf-8"))
    assert set(result["sides"]) == {name for name in gpu_torch.SIDES if "compiled" not in name}
    for name, side in result["sides"].items():
        assert side["cosine_min"] > (0.97 if "fp8" in name else 0.999)
        assert side["real mix"]["tokens_per_second"] > 0
    assert json.loads(capsys.readouterr().out) == result


def test_random_weights_are_the_same_whole_and_by_rows():
    tensor = random_tensor.RandomTensor("pooler.key_value.weight", (12, 8))
    np.testing.assert_array_equal(tensor.read()[3:7], tensor.read(slice(3, 7)))


def test_random_weights_longer_than_their_source_go_on_at_its_beginning(monkeypatch):
    monkeypatch.setattr(random_tensor, "_POOL", random_tensor._POOL[:10])
    monkeypatch.setattr(random_tensor, "_scaled", random_tensor._scaled.__wrapped__)
    tensor = random_tensor.RandomTensor("linear.weight", (9, 4))
    flat = 2 * tensor.read().ravel()
    np.testing.assert_array_equal(flat[:-10], flat[10:])
    assert len(set(flat.tolist())) == 10


def test_a_side_that_fails_is_its_own_result_and_the_others_go_on(tmp_path: Path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(gpu_torch, "card_side", fail)
    out = tmp_path / "result.json"
    words = ["--device", "cpu", "--tiny", "--seconds", "0", "--json", str(out)]
    assert gpu_torch.main([*words, "--only", gpu_torch.CARD, "--only", "packed, bf16"]) == 1
    sides = json.loads(out.read_text("utf-8"))["sides"]
    assert sides[gpu_torch.CARD] == {"error": "RuntimeError: CUDA out of memory"}
    assert sides["packed, bf16"]["cosine_min"] > 0.999


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=["of torch", "of cuBLAS"],
)
def test_a_reference_too_large_in_float32_is_taken_in_bfloat16(monkeypatch, error: RuntimeError):
    whole = gpu_torch.Run.model

    def full(run: gpu_torch.Run, dtype: torch.dtype):
        if dtype is torch.float32:
            raise error
        return whole(run, dtype)

    monkeypatch.setattr(gpu_torch.Run, "model", full)
    run = gpu_torch.Run(gpu_torch.TINY, torch.device("cpu"), 0)
    assert gpu_torch.reference_rows(run)[0] == "bfloat16"


@pytest.mark.parametrize("batch_size", [None, 3])
def test_batches_hold_every_text_once(batch_size):
    lengths = [5, 900, 7, 4000, 4000, 9, 800]
    groups = gpu_torch.batches(lengths, batch_size)
    assert sorted(n for group in groups for n in group) == sorted(lengths)


def test_the_side_of_an_artifact_has_linears_as_an_export_stores_them():
    run = gpu_torch.Run(gpu_torch.TINY, torch.device("cpu"), 0)
    model = run.packed("packed, fp8 artifact")._model
    assert model is not None
    wide = model.layers[0].query_key_value
    assert isinstance(wide, WideLinear)
    dense = run.packed("packed, bf16")._model.layers[0].query_key_value
    difference = wide.dense().weight_OI.float() - dense.weight_OI.float()
    assert 0 < difference.norm() < 0.05 * dense.weight_OI.float().norm()
