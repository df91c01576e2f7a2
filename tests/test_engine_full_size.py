"""The full-size engine benchmark, run here on a tiny model so that it is known to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import engine_full_size
from tests.export.test_engine import SPEC

pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")


@pytest.mark.parametrize("rank", [0, 32])
def test_it_compiles_noise_and_tells_time_memory_and_what_was_fused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
) -> None:
    monkeypatch.setattr(engine_full_size, "of_layers", lambda _spec, _num_layers: SPEC)
    out = tmp_path / "result.json"
    words = ["--precision", "fp8", "--fp8-rank", str(rank), "--json", str(out)]
    assert engine_full_size.main([*words, "--workdir", str(tmp_path)]) == 0
    result = json.loads(out.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    assert result["seconds"] > 0
    assert result["child_peak_gib"] > 0.05
    assert result["facts"]["fused_attention"] == SPEC.backbone.num_layers * result["profiles"]
    assert result["fp8_rank"] == rank
    assert (result["facts"]["linears"]["fp16"] > 3 * result["profiles"]) == (rank > 0)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
