"""The study of remedies: what it adds changes nothing before rounding, and the rest is as meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import remedies
from benchmarks.remedies import VARIANTS, Variant, _Means, _observed, _Rounded, _Study
from benchmarks.smoothing import smooth
from nvembed_deploy.export.blocks import Blocks, linears_of
from nvembed_deploy.export.calibration_texts import Calibration
from nvembed_deploy.export.formats import SCHEMES, Activations, Formats, Rounding
from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.export.ranges import InputObserver
from nvembed_deploy.export.rotation import RotatedWeights
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.text import Batch, Tokenizer
from tests import factories

STATIC = Formats(replace(SCHEMES["int8"].linear, activations=Activations.STATIC))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    path = factories.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    return Calibration(max_tokens=24).batches(Tokenizer.load(path, factories.TINY.text))[::4]


@pytest.mark.parametrize("rotates", [False, True])
def test_smoothing_is_exact_until_something_is_rounded(
    rotates: bool, tiny_weights: Weights, texts: list[Batch]
) -> None:
    weights = RotatedWeights(tiny_weights) if rotates else tiny_weights
    with torch.inference_mode(), open_linears(weights, is_folded=True) as linears:
        blocks = Blocks(linears, STATIC, texts)
        layer, states = blocks.layer(0), blocks.embed()
        seen = _observed(
            linears_of(layer), InputObserver(), lambda o: blocks.through(layer, states, o.weigh)
        )
        before = list(blocks.through(layer, states))
        exponents = smooth(layer, blocks.spec.backbone.head_width, seen)
        assert any(exponents.values()), "nothing was smoothed"
        for got, exact in zip(blocks.through(layer, states), before, strict=True):
            torch.testing.assert_close(got, exact, atol=2e-6, rtol=1e-5)


def test_the_mean_output_on_the_texts_is_what_it_was_after_correcting(
    tiny_weights: Weights, texts: list[Batch]
) -> None:
    variant = Variant("int4-weight", Rounding.NEAREST, corrects=True)
    with torch.inference_mode(), open_linears(tiny_weights, is_folded=True) as linears:
        rounded = _Rounded(variant, linears, variant.formats, texts, texts)
        blocks = rounded._blocks
        layer, states = blocks.layer(0), blocks.embed()
        floats = {linear.name: linear.weight_OI for linear in linears_of(layer)}
        through = lambda o: blocks.through(layer, states, o.weigh)  # noqa: E731
        means = _observed(linears_of(layer), _Means(), through)
        rounded._round(layer, through)
        for linear in linears_of(layer)[:3]:  # the others read what these changed
            mean_I = means.mean(linear.name)
            wanted = floats[linear.name] @ mean_I
            torch.testing.assert_close(linear.weight_OI @ mean_I + linear.bias, wanted)
            assert not torch.allclose(linear.weight_OI @ mean_I, wanted, atol=1e-4)


def test_it_rounds_as_the_product_does(tiny_assembled: Path) -> None:
    """The study's int8 is the exported one's but for float16 in between."""
    study = _Study(tiny_assembled, ["a text", "another text of more words", "third"] * 4)
    row = study.measure(VARIANTS["int8"])
    assert 0.99 < row["min_cosine"] < 1


def test_it_writes_each_row_and_keeps_earlier_ones(tiny_assembled: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    for name in ("fp8", "fp8 + SmoothQuant"):
        words = [str(tiny_assembled), "--texts", "12", "--only", name, "--json", str(out)]
        assert remedies.main(words) == 0
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert list(rows) == ["fp8", "fp8 + SmoothQuant"]
    assert all(np.isfinite(row["mean_cosine"]) for row in rows.values())
