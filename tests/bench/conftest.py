"""Fixtures of the benchmark's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.bench.competitors.weights import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_assembled: Path) -> Path:
    """The tiny weights in the competitors' formats."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(tiny_assembled, folder, is_traced=True)
    return folder
