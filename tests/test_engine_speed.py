"""Tests of benchmarks/engine_speed.py and engine_probe.py: what is measured, and what is kept.

The measuring itself is run here on a processor.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine_probe, engine_speed
from nvembed_deploy.errors import HardwareError
from nvembed_deploy.runtimes import load_encoder
from nvembed_deploy.tensorrt_api import gpu_target


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts and shapes, and hardly a warm-up."""
    monkeypatch.setattr(engine_speed, "LENGTHS", (5, 17, 40))
    monkeypatch.setattr(engine_speed, "SHAPES", ((1, 32), (4, 16)))
    monkeypatch.setattr(engine_speed, "_WARM_UP_SECONDS", (0.0, 0.1))


def test_measuring_an_artifact_against_a_saved_reference(
    tiny_assembled: Path, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, result = tmp_path / "rows.npy", tmp_path / "result.json"
    cpu = ["--device", "cpu"]
    words = [str(tiny_assembled), "--runtime", "torch", "--dtype", "fp32", "--save", str(rows)]
    measure(monkeypatch, *words, *cpu, "--repeats", "0")
    words = [str(tiny_artifact), "--runtime", "onnx", "--reference", str(rows)]
    measure(monkeypatch, *words, *cpu, "--repeats", "3", "--json", str(result))
    said = json.loads(result.read_text())
    assert said["agreement"]["texts"] == 6
    assert said["agreement"]["cosine_min"] > 0.999999
    assert [(row["texts"], row["tokens"]) for row in said["speed"]] == [(1, 32), (4, 16)]
    assert all(row["p50_ms"] <= row["p99_ms"] for row in said["speed"])
    assert {row["runs"] for row in said["speed"]} == {3}
    assert (said["runtime"], said["device"], said["precision"]) == ("onnx", "cpu", "fp32")
    assert {p.name for p in tmp_path.iterdir()} == {"rows.npy", "result.json"}


def measure(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["engine_speed", *words])
    assert engine_speed.main() == 0


def test_a_row_that_is_another_texts_shows(tiny_artifact: Path, tmp_path: Path) -> None:
    with load_encoder(tiny_artifact, "onnx", device="cpu") as encoder:
        rows_ND = np.concatenate(
            [
                encoder.runtime.embed(engine_speed.random_batch(encoder, [9], seed=seed))
                for seed in range(3)
            ]
        )
    np.save(tmp_path / "rows.npy", rows_ND[[0, 2, 1]])
    assert engine_speed.compare(rows_ND, tmp_path / "rows.npy")["cosine_min"] < 0.99


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{says}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("says", "mib"),
    [("[N/A]\\n", None), ("[N/A]\\n[N/A]\\n", None), ("", None), ("512\\n1024\\n", 1536)],
)
def test_a_gpu_that_does_not_tell_its_memory_has_none_told(
    says: str, mib: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, says)
    assert engine_speed.gpu_memory_mib() == mib


@pytest.mark.parametrize("what", ["gpu_memory_mib", "time_shape"])
def test_what_was_measured_is_kept_whatever_goes_wrong_after_it(
    what: str, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, result = tmp_path / "rows.npy", tmp_path / "result.json"
    works = getattr(engine_speed, what)

    def fails_at_last(*given: object) -> object:
        if what == "gpu_memory_mib" or (4, 16) in given:
            raise RuntimeError("CUDA error: out of memory")
        return works(*given)

    monkeypatch.setattr(engine_speed, what, fails_at_last)
    words = [str(tiny_artifact), "--runtime", "onnx", "--device", "cpu", "--repeats", "2"]
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(monkeypatch, *words, "--save", str(rows), "--json", str(result))
    assert np.load(rows).shape[0] == 6
    assert not result.exists()  # what a later run would take for a whole one
    speed = json.loads((tmp_path / "result.partial.json").read_text())["speed"]
    assert len(speed) == (2 if what == "gpu_memory_mib" else 1)


def test_slow_runs_are_fewer_but_some() -> None:
    assert len(engine_speed.timed(lambda: time.sleep(0.01), 50, most_seconds=0.08)) in range(5, 9)
    assert len(engine_speed.timed(lambda: time.sleep(0.01), 50, most_seconds=0)) == 5
    assert len(engine_speed.timed(lambda: None, 3, most_seconds=0)) == 3


def test_the_probe_goes_all_the_way_that_a_machine_allows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    if gpu_target() is not None:
        pytest.skip("there is a GPU here")
    assert engine_probe.TINY.backbone.max_positions == 32768  # as the random checkpoint's
    assert engine_probe.main(["--engine", "tensorrt-rtx", "--target", "sm89"]) == 3
    said = capsys.readouterr()
    assert "for sm89; 6 fused attentions" in said.out
    assert "CUDA refused cudaGetDeviceCount" in said.err


def test_the_probe_refuses_rows_that_are_not_the_processors(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_probe.compare(tiny_artifact, "onnx") > 0.99999
    monkeypatch.setattr(engine_probe, "_LEAST_COSINE", 1.1)
    with pytest.raises(HardwareError, match=r"not ONNX Runtime's: cosine 1\.0000, expected 1\.1"):
        engine_probe.compare(tiny_artifact, "onnx")
