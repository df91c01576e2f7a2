"""The speed limit: one number for each format that can be timed."""

from __future__ import annotations

import pytest

from nvembed_deploy.bench import ceiling
from nvembed_deploy.bench.ceiling import measure_ceiling


def test_each_known_format_has_a_rate() -> None:
    found = measure_ceiling(64, 128, ["fp32", "bf16", "int8"])
    assert set(found) == {"fp32", "bf16"}
    assert all(1e6 < rate < 1e15 for rate in found.values())


def test_numpy_stands_in_where_torch_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "find_spec", lambda _name: None)
    assert set(measure_ceiling(64, 128, ["fp32", "bf16"])) == {"fp32"}
