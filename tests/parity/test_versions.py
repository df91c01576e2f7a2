"""Tests of nvembed_deploy/parity/versions.py: what is installed of several, whichever it is."""

from __future__ import annotations

from importlib import metadata

import pytest

import nvembed_deploy
from nvembed_deploy.parity.versions import COMPUTING, MEASURING, versions

GPU_HOST = {"onnxruntime-gpu": "1.30", "tensorrt": "11.4", "tensorrt-rtx-cu13": "1.7"}


def only(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)


def test_all_that_is_installed_of_alternatives_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, GPU_HOST | {"torch": "2.13"})
    found = versions(COMPUTING)
    assert found.items() >= (GPU_HOST | {"torch": "2.13"}).items()
    assert "onnxruntime" not in found
    assert found["transformers"] == "not installed"


def test_where_none_is_installed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, {})
    found = versions(COMPUTING + MEASURING)
    assert found.pop("nvembed-deploy") == nvembed_deploy.__version__
    assert set(found.values()) == {"not installed"}
    assert found.keys() >= {"onnxruntime", "tensorrt", "torch", "mteb"}
    assert "onnxruntime-gpu" not in found
