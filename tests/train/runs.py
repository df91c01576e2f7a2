"""Shared by the tests of runs: what a run wrote, and whether two runs wrote the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

WEIGHTS = ("adapter/adapter_model.safetensors", "pooler.safetensors")


def weights(out: Path) -> dict[str, np.ndarray]:
    """Return what a run trained."""
    parts = [load_file(out / "checkpoint" / part) for part in WEIGHTS]
    return parts[0] | parts[1]


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Compare what two runs trained."""
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert np.abs(tensor - theirs[name]).max() <= tolerance, name
