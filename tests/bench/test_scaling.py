"""The cost curves of a tiny model, and the cliff check on one that has a cliff."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.bench import scaling
from nvembed_deploy.bench.process import start
from nvembed_deploy.bench.scaling import measure_scaling
from nvembed_deploy.bench.side import Side


class Padded:
    """A side whose every call costs its texts times its longest one: no sorting, one batch."""

    def ask(self, _do: str, groups: list[Any]) -> dict[str, float]:
        texts = groups[0][1]
        return {"seconds": len(texts) * max(len(text.split()) for text in texts) / 1e3}


def words(texts: list[str]) -> list[int]:
    """Count words."""
    return [len(text.split()) for text in texts]


def test_every_curve_has_every_point(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "REPEATS", 1)
    worker, _ = start(Side("ours", path=str(tiny_artifact), device="cpu", threads=1))

    def lengths(texts: list[str]) -> list[int]:
        return worker.ask("tokenize", groups=[["", texts]])["lengths"]

    with worker:
        found = measure_scaling({"ours": worker}, lengths, 512, lambda _text: None)
    assert [point.at for point in found.batch["ours"]] == list(scaling.BATCHES)
    assert [point.at for point in found.length["ours"]] == [16, 64, 256]
    assert [point.at for point in found.corpus["ours"]] == list(scaling.CORPORA)
    for point in found.length["ours"]:
        assert 0.9 * point.at - 1 <= point.tokens <= point.at
        assert point.tokens_per_second > 0
    assert found.mixed["ours"] > 0


def test_a_side_that_pads_to_the_longest_has_a_cliff() -> None:
    workers: Any = {"padded": Padded()}
    found = measure_scaling(workers, words, 512, lambda _text: None)
    assert found.mixed["padded"] == pytest.approx(24 * 256 / (8 * (16 + 64 + 256)), rel=0.1)
    assert found.cliffs == ["padded"]
