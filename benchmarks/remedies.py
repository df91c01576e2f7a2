"""This file owns the study of two remedies that no recipe has: SmoothQuant and bias correction.

Each is added to recipes of ours, in torch, block by block as calibration does it; the held texts
pass the same rounded blocks, and are compared with the float model.
Run: python -m benchmarks.remedies build/demo/checkpoint --json FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from benchmarks.quantization import compare, earlier_rows, held_texts
from benchmarks.smoothing import smooth
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.export.blocks import Blocks, States, linears_of
from nvembed_deploy.export.calibrate import _Inputs
from nvembed_deploy.export.calibration_texts import Calibration
from nvembed_deploy.export.compensate import compensate
from nvembed_deploy.export.formats import SCHEMES, Activations, Formats, Rounding
from nvembed_deploy.export.graph_linear import GraphLinear, first_of
from nvembed_deploy.export.linear_weights import LinearWeights, open_linears
from nvembed_deploy.export.quantize import round_nearest
from nvembed_deploy.export.ranges import InputObserver
from nvembed_deploy.export.rotation import RotatedWeights
from nvembed_deploy.export.row_ranges import find_uneven
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.runtimes import _tokenizer
from nvembed_deploy.text import Batch

_Observer = TypeVar("_Observer", bound=InputObserver)
_Run = Callable[[InputObserver], Iterable[torch.Tensor]]
"""Runs a block on the texts it is calibrated on."""


@dataclass(frozen=True)
class Variant:
    """A recipe and what is added to it."""

    scheme: str
    rounding: Rounding = Rounding.COMPENSATED
    rotates: bool = False
    activations: Activations | None = None
    """None: the scheme's own, measured where it measures."""
    smooths: bool = False
    corrects: bool = False

    @property
    def formats(self) -> Formats:
        """How linears are quantised, before anything is measured."""
        linear = SCHEMES[self.scheme].linear
        return Formats(replace(linear, activations=self.activations or linear.activations))

    @property
    def measures(self) -> bool:
        """Whether it is measured who needs a range per token."""
        return SCHEMES[self.scheme].measures and self.activations is None


_PLAIN = Variant("int8", Rounding.NEAREST, activations=Activations.STATIC)
_STATIC = replace(_PLAIN, rounding=Rounding.COMPENSATED)
_OURS = {
    "int8": Variant("int8", rotates=True),
    "int8, one range an input, not rotated, nearest": _PLAIN,
    "int8, one range an input, not rotated": _STATIC,
    "fp8": Variant("fp8"),
    "int4-weight": Variant("int4-weight", rotates=True),
}
_ADDED: dict[str, dict[str, bool]] = {
    "": {},
    "SmoothQuant": {"smooths": True},
    "bias correction": {"corrects": True},
}
VARIANTS = {
    f"{name} + {added}" if added else name: replace(variant, **flags)
    for name, variant in _OURS.items()
    for added, flags in _ADDED.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Round, embed, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--only", action="append", help="a variant's name (repeatable)")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args(argv)
    study = _Study(args.checkpoint, held_texts(args.texts))
    rows = earlier_rows(args.json)
    for name in args.only or VARIANTS:
        started = time.monotonic()
        row = {"date": time.strftime("%Y-%m-%d"), **study.measure(VARIANTS[name])}
        rows[name] = {**row, "seconds": round(time.monotonic() - started)}
        print(json.dumps({"recipe": name, **rows[name]}), flush=True)  # noqa: T201
        if args.json:
            args.json.write_text(json.dumps(_result(args, rows), indent=2) + "\n", encoding="utf-8")
    return 0


def _result(args: argparse.Namespace, rows: dict[str, object]) -> dict[str, object]:
    return {
        "checkpoint": args.checkpoint.name,
        "texts": args.texts,
        "versions": {name: metadata.version(name) for name in ("numpy", "torch")},
        "rows": {name: rows[name] for name in VARIANTS if name in rows},
    }


class _Study:
    """A checkpoint, the texts it is calibrated on, and the held ones with their embeddings."""

    def __init__(self, checkpoint: Path, texts: Sequence[str]) -> None:
        opened = open_checkpoint(checkpoint)
        self._weights = open_weights(opened)
        tokenizer = _tokenizer(opened)
        with tempfile.TemporaryDirectory() as folder:
            held = Path(folder) / "held.jsonl"
            held.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
            self._held = Calibration(held, len(texts), 512).batches(tokenizer)
        self._seen = Calibration().batches(tokenizer)
        with self._linears(rotates=False) as linears:
            self._exact_ND = _embed(linears, Formats(), self._held)

    def measure(self, variant: Variant) -> dict[str, float]:
        """Return how near the held texts' embeddings stay, and what smoothing chose."""
        with self._linears(rotates=variant.rotates) as linears:
            formats = variant.formats
            if variant.measures:
                formats = replace(formats, per_token=find_uneven(linears, formats, self._seen))
            rounded = _Rounded(variant, linears, formats, self._seen, self._held)
            row = compare(rounded.embed(), self._exact_ND)
        if rounded.exponents:
            row["mean_exponent"] = round(float(np.mean(list(rounded.exponents.values()))), 2)
        return row

    def _linears(self, *, rotates: bool) -> AbstractContextManager[LinearWeights]:
        weights = RotatedWeights(self._weights) if rotates else self._weights
        return open_linears(weights, is_folded=True)


@dataclass
class _Means(_Inputs):
    """Notes the weighted mean of each linear's input, too."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def see(self, name: str, x_NI: torch.Tensor, weights_N1: torch.Tensor) -> None:
        super().see(name, x_NI, weights_N1)
        squares_N1 = weights_N1.square()
        self.sums[name] = self.sums.get(name, 0) + (x_NI * squares_N1).sum(0)
        self.counts[name] = self.counts.get(name, 0.0) + float(squares_N1.sum())

    def mean(self, name: str) -> torch.Tensor:
        """Return the mean input [I] of a linear."""
        return self.sums[first_of(name)] / self.counts[first_of(name)]


class _Rounded:
    """One variant, block by block."""

    def __init__(
        self,
        variant: Variant,
        linears: LinearWeights,
        formats: Formats,
        seen: Sequence[Batch],
        held: Sequence[Batch],
    ) -> None:
        self._variant = variant
        self._blocks, self._held = (Blocks(linears, formats, batches) for batches in (seen, held))
        self.exponents: dict[str, float] = {}

    @torch.inference_mode()
    def embed(self) -> np.ndarray:
        """Return the held texts' embeddings [N, D]."""
        blocks, held = self._blocks, self._held
        states, held_states = blocks.embed(), held.embed()
        for index in range(blocks.spec.backbone.num_layers):
            layer = blocks.layer(index)
            run = partial(_observe_layer, blocks, layer, states)
            if self._variant.smooths:
                self._smooth(layer, run)
            self._round(layer, run)
            states = list(blocks.through(layer, states))
            held_states = list(held.through(layer, held_states))
        pooler, last = blocks.pooler(), blocks.normed(states)
        self._round(pooler, lambda inputs: blocks.pool(pooler, last, inputs.weigh))
        return torch.cat(list(held.pool(pooler, held.normed(held_states)))).numpy()

    def _smooth(self, layer: nn.Module, run: _Run) -> None:
        linears = linears_of(layer)
        with _floating(linears):
            seen = _observed(linears, InputObserver(), run)
        self.exponents |= smooth(layer, self._blocks.spec.backbone.head_width, seen)

    def _round(self, block: nn.Module, run: _Run) -> None:
        linears = linears_of(block)
        inputs = _observed(linears, _Means(), run)
        for linear in linears:
            if linear.form is not None:
                self._quantize(linear, inputs)

    def _quantize(self, linear: GraphLinear, inputs: _Means) -> None:
        form, weight_OI = linear.form, linear.weight_OI
        assert form is not None
        if self._variant.rounding is Rounding.NEAREST:
            quantized = round_nearest(weight_OI, form)
        else:
            quantized = compensate(weight_OI, inputs.take_energy(linear.name), form)
        if form.activations is Activations.STATIC:
            scale = inputs.find_scale(linear.name, weight_OI, form.code)
            quantized = replace(quantized, input_scale=scale)
        linear.take(quantized)
        if self._variant.corrects:
            bias_O = (weight_OI - linear.weight_OI) @ inputs.mean(linear.name)
            linear.bias = bias_O if linear.bias is None else linear.bias + bias_O


def _embed(linears: LinearWeights, formats: Formats, batches: Sequence[Batch]) -> np.ndarray:
    with torch.inference_mode():
        blocks = Blocks(linears, formats, batches)
        states: States = blocks.embed()
        for index in range(blocks.spec.backbone.num_layers):
            states = list(blocks.through(blocks.layer(index), states))
        pooled = list(blocks.pool(blocks.pooler(), blocks.normed(states)))
        return torch.cat(pooled).numpy()


def _observe_layer(
    blocks: Blocks, layer: nn.Module, states: States, observer: InputObserver
) -> Iterable[torch.Tensor]:
    return blocks.through(layer, states, observer.weigh)


def _observed(linears: Sequence[GraphLinear], observer: _Observer, run: _Run) -> _Observer:
    """Return an observer that has seen a block run once."""
    for linear in linears:
        linear.observer = observer
    deque(run(observer), maxlen=0)
    for linear in linears:
        linear.observer = None
    return observer


@contextmanager
def _floating(linears: Sequence[GraphLinear]) -> Iterator[None]:
    """Round no input meanwhile."""
    forms = [linear.form for linear in linears]
    for linear in linears:
        linear.form = None
    yield
    for linear, form in zip(linears, forms, strict=True):
        linear.form = form


if __name__ == "__main__":
    sys.exit(main())
