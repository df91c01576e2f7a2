"""A side in its own process: what goes in, what comes back, and what its end looks like."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.bench.process import WorkerProcess, start
from nvembed_deploy.bench.side import Side
from nvembed_deploy.errors import ArtifactError, HardwareError, InputError
from nvembed_deploy.runtimes import load_encoder

TEXTS = ["the cat", "a mat"]


def test_a_worker_embeds_as_the_encoder_in_this_process(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    side = Side("ours", path=str(tiny_artifact), device="cpu", threads=1)
    worker, opened = start(side)
    with worker:
        out = tmp_path / "rows.npy"
        assert worker.ask("encode", groups=[["", TEXTS]], out=str(out))["seconds"] > 0
        lengths = worker.ask("tokenize", groups=[["", TEXTS], ["find", TEXTS]])["lengths"]
        assert worker.ask("memory")["peak_bytes"] > 1 << 20
    with load_encoder(tiny_artifact, "onnx", device="cpu") as encoder:
        assert np.array_equal(np.load(out), encoder.encode(TEXTS))
        assert lengths[:2] == [len(t.ids) for t in encoder.tokenizer.tokenize(TEXTS)]
    assert lengths[2] > lengths[0]
    assert opened["cold_start_seconds"] > opened["load_seconds"] > 0
    assert opened["facts"]["dtype"] == "fp32"


def test_torch_runs_in_the_number_format_asked_for(tiny_checkpoint: Path) -> None:
    side = Side("ours", path=str(tiny_checkpoint), device="cpu", threads=1, dtype="bf16")
    worker, opened = start(side)
    with worker:
        assert opened["facts"]["dtype"] == "bf16"
        assert opened["facts"]["runtime"] == "torch"


def test_what_a_worker_raises_is_raised_here_with_the_name_of_its_side(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"mine: .* is neither an artifact"):
        start(Side("mine", path=str(tmp_path)))


def test_a_text_that_cannot_be_encoded_is_an_input_error(tiny_artifact: Path) -> None:
    worker, _ = start(Side("ours", path=str(tiny_artifact), device="cpu", threads=1))
    with worker, pytest.raises(InputError, match=r"ours: inputs\[1\]"):
        worker.ask("encode", groups=[["", ["good", "bad \ud800"]]])


def test_a_worker_that_was_killed_is_an_error_with_its_code() -> None:
    with WorkerProcess("mine") as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(HardwareError, match="mine: its process ended with code -9"):
            worker.ask("memory")


def test_a_worker_leaves_an_interrupt_to_its_parent() -> None:
    with WorkerProcess("mine") as worker:
        assert worker.ask("memory")
        os.kill(worker.pid, signal.SIGINT)
        assert worker.ask("memory")


def test_the_peak_of_a_worker_is_its_own_and_not_its_parents() -> None:
    large = np.ones(1 << 25)
    with WorkerProcess("mine") as worker:
        assert worker.ask("memory")["peak_bytes"] < large.nbytes


def test_what_a_dying_worker_printed_is_in_the_error() -> None:
    with WorkerProcess("mine") as worker, pytest.raises(HardwareError, match="no attribute 'jump'"):
        worker.ask("jump")
