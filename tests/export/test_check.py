"""Tests of nvembed_deploy/export/check.py: it passes what is right and fails planted faults."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.errors import GateError
from nvembed_deploy.export import check
from nvembed_deploy.export.check import Subject, check_graph
from nvembed_deploy.export.check_texts import check_batches
from nvembed_deploy.export.formats import Kernels
from nvembed_deploy.export.graph import GraphOptions, author_graph
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Tokenizer
from tests import factories
from tests.export.written import weight_file


@pytest.fixture
def subject(tmp_path: Path, tiny_weights: Weights) -> Subject:
    return written(tmp_path, tiny_weights, GraphOptions())


def written(folder: Path, weights: Weights, options: GraphOptions) -> Subject:
    file = weight_file(weights, options, folder)
    path = factories.write_tokenizer(folder / "tokenizer.json")
    return Subject(options, file.data, Tokenizer.load(path, weights.spec.text))


def test_the_built_in_texts_cover_instruction_padding_and_length(subject: Subject) -> None:
    short, long = check_batches(subject.tokenizer)
    masked = short.attention_mask_BS.sum(1) - short.pool_mask_BS.sum(1)
    assert masked.max() > 0
    assert masked.min() == 0
    assert (short.attention_mask_BS == 0).any()
    assert long.input_ids_BS.shape[1] > 3 * 64


def test_a_long_template_leaves_room_for_the_built_in_queries(tmp_path: Path) -> None:
    """As one with worked examples in it has: 300 tokens before the text."""
    template = "An example of a question and its answer. " * 8 + "Instruct: {instruction}\nQuery: "
    spec = replace(factories.TINY.text, instruction_template=template)
    path = factories.write_tokenizer(tmp_path / "tokenizer.json")
    short, _ = check_batches(Tokenizer.load(path, spec))
    assert short.pool_mask_BS[:3].sum(1).min() >= 16


def test_a_right_graph_passes_whole(tiny_weights: Weights, subject: Subject) -> None:
    report = check_graph(tiny_weights, subject)
    assert report.passed
    assert report.method == "whole graph"
    assert report.max_abs <= 2e-6


@pytest.mark.parametrize("precision", list(Precision))
def test_a_model_larger_than_memory_is_checked_block_by_block(
    tmp_path: Path,
    tiny_weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    monkeypatch.setattr(check, "available_bytes", lambda: 0)
    report = check_graph(tiny_weights, written(tmp_path, tiny_weights, GraphOptions(precision)))
    assert report.passed
    assert report.method == "block by block"
    assert report.worst_block is not None


def test_blocks_without_padding_are_compared_on_kept_tokens(
    tmp_path: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a graph has in padded slots is not the oracle's."""
    monkeypatch.setattr(check, "available_bytes", lambda: 0)
    subject = written(tmp_path, tiny_weights, GraphOptions(kernels=Kernels.CPU))
    pairs = check._run(tiny_weights, subject, check_batches(subject.tokenizer), lambda: None)
    error = float(re.findall(r"\((.*) of its size", str(pairs.worst_block))[0])
    assert error < 2e-3  # 4.8e-4: the table is in 16 bit


@pytest.mark.parametrize("fault", [None, "all", "one", "length"])
def test_mean_lowest_and_difference_each_decide(subject: Subject, fault: str | None) -> None:
    """Of 200 texts each is off by little, one by much, or one is too long."""
    rng = np.random.default_rng(0)
    expected, other = (rng.standard_normal((200, 4096)) for _ in range(2))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = expected + (0.02 if fault == "all" else 0) * other / 64
    got[0] += (0.1 if fault == "one" else 0) * other[0] / 64
    got[0] *= 1.5 if fault == "length" else 1
    half = replace(subject, options=GraphOptions(Precision.FP16))
    assert check._report(half, check._Pairs(expected, got, "")).passed is (fault is None)


class Changed(Weights):
    """The checkpoint's weights with one tensor changed: what a faulty export would write."""

    def __init__(self, weights: Weights, name: str, factor: float) -> None:
        super().__init__(weights.spec, weights._tensors)
        self._name, self._factor = name, factor

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        array = super().read(name, rows)
        return array * np.float32(self._factor) if name == self._name else array


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.1.self_attn.v_proj.weight",
        "backbone.layers.2.post_attention_layernorm.weight",
        "pooler.feed_down.weight",
        "pooler.latents",
        "pooler.query.weight",
    ],
)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_one_tensor_off_by_two_fails(
    tmp_path: Path, tiny_weights: Weights, name: str, precision: Precision
) -> None:
    factor = 2.0 if name != "pooler.latents" else -1.0  # LayerNorm hides the latents' scale
    faulty = written(tmp_path, Changed(tiny_weights, name, factor), GraphOptions(precision))
    with pytest.raises(GateError, match="not the checkpoint"):
        check_graph(tiny_weights, faulty)


def test_the_first_block_that_gives_no_numbers_is_named(
    tmp_path: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 0 is the embedding table, block 2 the second layer; all after it are no numbers too."""
    monkeypatch.setattr(check, "available_bytes", lambda: 0)
    huge = Changed(tiny_weights, "backbone.layers.1.self_attn.q_proj.weight", 1e38)
    with pytest.raises(GateError, match=r"worst block 2 \(inf of its size\)"):
        check_graph(tiny_weights, written(tmp_path, huge, GraphOptions()))


def test_another_rope_base_fails(
    tmp_path: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_weights.spec
    wrong = replace(spec, backbone=replace(spec.backbone, rope_theta=500.0))
    subject = written(tmp_path, tiny_weights, GraphOptions())
    monkeypatch.setattr(check, "author_graph", lambda _, options: author_graph(wrong, options))
    with pytest.raises(GateError):
        check_graph(tiny_weights, subject)
