"""The traced graph runs on the GPU that was asked for; ONNX Runtime's build for GPUs is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from nvembed_deploy.bench.competitors.traced_graph import open_traced
from nvembed_deploy.bench.side import Side


@pytest.mark.parametrize(
    ("device", "place"), [(None, "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_it_runs_on_the_gpu_of_the_sides_number(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, place: str
) -> None:
    calls: list[object] = []

    class Session:
        """Notes the providers that it is given."""

        def __init__(self, _path: str, _options: object, *, providers: list[Any]) -> None:
            calls.append(providers)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: calls.append("libraries"))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    subject = open_traced(Side("traced", path=str(prepared), device=device))
    index = place.removeprefix("cuda:")
    assert calls == ["libraries", [("CUDAExecutionProvider", {"device_id": index})]]
    assert subject.facts["device"] == place
