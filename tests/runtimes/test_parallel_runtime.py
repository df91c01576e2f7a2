"""Tests of several runtimes as one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.parallel_runtime import ParallelRuntime
from nvembed_deploy.text import Batch, Tokens, collate

TEXTS = [f"text number {i} " * (1 + i % 7) for i in range(40)]


class Meeting:
    """A runtime that waits until others compute too."""

    name, max_tokens, packs, workers = "meeting", 16, False, 1

    def __init__(self, device: str, barrier: threading.Barrier) -> None:
        self.device, self._barrier, self.is_closed = device, barrier, False

    def embed(self, batch: Batch) -> np.ndarray:
        self._barrier.wait(timeout=10)
        return np.ones((batch.num_texts, 2), np.float32)

    def close(self) -> None:
        self.is_closed = True


def test_two_devices_give_the_rows_of_one(tiny_artifact: Path):
    with load_encoder(tiny_artifact, "onnx", device="cpu") as one:
        expected_ND = one.encode(TEXTS, batch_size=3)
    with load_encoder(tiny_artifact, "onnx", device="cpu, cpu") as two:
        assert two.runtime.device == "cpu,cpu"
        np.testing.assert_allclose(two.encode(TEXTS, batch_size=3), expected_ND, atol=2e-6)


def test_batches_are_computed_side_by_side():
    barrier = threading.Barrier(2)
    runtime = ParallelRuntime([Meeting(name, barrier) for name in ("a", "b")])
    batch = collate([Tokens(np.arange(3))], 0)
    threads = [threading.Thread(target=runtime.embed, args=(batch,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert not barrier.broken
    assert not any(thread.is_alive() for thread in threads)


def test_closing_it_closes_all():
    members = [Meeting(name, threading.Barrier(1)) for name in ("a", "b")]
    ParallelRuntime(members).close()
    assert all(member.is_closed for member in members)


def test_a_device_that_is_not_there_is_named(tiny_artifact: Path):
    with pytest.raises(InputError, match="nonsense"):
        load_encoder(tiny_artifact, "onnx", device="cpu,nonsense")
