"""The benchmark of many texts, run here on some windows of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import many_texts


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_it_streams_all_texts_and_notes_memory_on_the_way(tmp_path: Path, tiny_artifact, capsys):
    out = tmp_path / "result.json"
    words = [str(tiny_artifact), "--texts", "9000", "--json", str(out)]
    assert many_texts.main(words) == 0
    result = json.loads(out.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    assert result["texts"] == 9000
    assert [point["texts"] for point in result["points"]] == [8192, 9000]
    assert all(point["rss_mib"] > 20 for point in result["points"])
