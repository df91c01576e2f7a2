"""Tests of nvembed_deploy/parity/margins.py: what every precision is held to, by its own name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nvembed_deploy.export.recipe import PRECISIONS
from nvembed_deploy.parity.margins import MARGINS, precision_of
from nvembed_deploy.parity.trace import TOLERANCES
from nvembed_deploy.parity.verdict import _DRIFT
from nvembed_deploy.spec import Precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_held_to_something(precision: str) -> None:
    manifest = SimpleNamespace(recipe={"precision": precision}, precision=Precision.FP16)
    row = precision_of(manifest)
    assert precision.startswith(row)
    assert row in MARGINS.keys() & TOLERANCES.keys() & _DRIFT.keys()


def test_a_checkpoint_is_float32() -> None:
    assert precision_of(None) == "fp32"
