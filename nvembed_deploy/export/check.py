"""This file owns the export's self-check: the written graph against the torch oracle.

The oracle runs block by block from the checkpoint (`model/streaming.py`: float32, faithful pooler,
adapter merged), the graph through ONNX Runtime on the CPU from the files just written: whole where
it fits in memory, else block by block as well. It is never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from nvembed_deploy.errors import GateError, MissingPackageError
from nvembed_deploy.export.builder import WeightData
from nvembed_deploy.export.check_texts import check_batches
from nvembed_deploy.export.formats import Code, Kernels
from nvembed_deploy.export.graph import INPUTS, Block, GraphOptions, author_blocks, author_graph
from nvembed_deploy.export.memory import available_bytes, give_back
from nvembed_deploy.export.rotation import Rotation
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.onnx_session import session_options
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch, Tokenizer


@dataclass(frozen=True)
class Tolerance:
    """How far a graph may be from the float32 oracle."""

    mean_cosine: float
    min_cosine: float
    max_abs: float


TOLERANCES = {
    Precision.FP32: Tolerance(0.999999, 0.999999, 1e-5),
    Precision.FP16: Tolerance(0.9999, 0.999, 1e-2),
    Precision.BF16: Tolerance(0.999, 0.99, 5e-2),
}
QUANTIZED_TOLERANCES = {
    Code.FP8: Tolerance(0.97, 0.85, 0.3),
    Code.INT8: Tolerance(0.98, 0.9, 0.2),
    Code.INT4: Tolerance(0.9, 0.7, 0.4),
}
"""Measured on the 135M demo model: see docs/numerics.md. They catch a graph that is wrong; whether
a quantised one may replace the checkpoint is decided on real texts."""
_WHOLE_FACTOR = 3.0
"""ONNX Runtime's peak memory over float32 weights, for graphs whose weights it prepacks."""


@dataclass(frozen=True)
class CheckReport:
    """What the self-check found; goes into the manifest."""

    passed: bool
    mean_cosine: float
    min_cosine: float
    max_abs: float
    num_texts: int
    method: str
    arithmetic: str
    worst_block: str | None
    tolerance: Tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What is checked: how the graph was authored, where its weights lie."""

    options: GraphOptions
    data: WeightData
    tokenizer: Tokenizer
    rotation: Rotation | None = None
    """Of the token states, where the graph keeps them rotated."""


def check_graph(
    weights: Weights, subject: Subject, on_block: Callable[[], None] = lambda: None
) -> CheckReport:
    """Compare the written graph with the oracle on the built-in texts.

    Args:
        weights: the checkpoint's tensors.
        subject: the written graph.
        on_block: called after each block of the oracle.

    Raises:
        GateError: the numbers are outside the tolerance of the precision.
        MissingPackageError: torch or onnxruntime is not installed.
    """
    batches = check_batches(subject.tokenizer)
    report = _report(subject, _run(weights, subject, batches, on_block))
    if not report.passed:
        raise GateError(
            f"the exported graph is not the checkpoint: {_numbers(report)}; tolerance "
            f"{asdict(report.tolerance)}",
            "nothing was written. Try --precision fp32: if that passes, this checkpoint needs "
            "bf16 or fp32; if it fails, report it with these numbers",
        )
    return report


@dataclass(frozen=True)
class _Pairs:
    expected_ND: np.ndarray
    got_ND: np.ndarray
    method: str
    worst_block: str | None = None


def _run(
    weights: Weights, subject: Subject, batches: Sequence[Batch], on_block: Callable[[], None]
) -> _Pairs:
    needed = _WHOLE_FACTOR * 4 * sum(int(np.prod(s)) for s in weights.shapes.values())
    oracle = _oracle(weights, batches)
    if needed < available_bytes():
        for states in oracle:
            last = states
            on_block()
        got = _run_whole(weights, subject, batches)
        return _Pairs(np.concatenate(last), np.concatenate(got), "whole graph")
    runner = _BlockRunner(weights, subject, batches)
    worst, largest = None, -1.0
    for position, states in enumerate(oracle):
        give_back()
        got = runner.step()
        is_last = position == weights.spec.backbone.num_layers + 1
        rotation = None if is_last else subject.rotation
        same = [rotation(state) for state in states] if rotation else states
        kept = [slice(None) if is_last else batch.attention_mask_BS > 0 for batch in batches]
        error = max(_relative(a[k], b[k]) for a, b, k in zip(same, got, kept, strict=True))
        if error > largest:
            worst, largest = f"block {position} ({error:.2e} of its size)", error
        last = states
        on_block()
    return _Pairs(np.concatenate(last), np.concatenate(got), "block by block", worst)


def _oracle(weights: Weights, batches: Sequence[Batch]) -> Any:  # noqa: ANN401 - torch is optional
    try:
        from nvembed_deploy.model.streaming import StreamingModel
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the self-check needs {error.name}, which is not installed",
            "pip install 'nvembed-deploy[export]'",
        ) from error
    return StreamingModel(weights, batches).run()


def _run_whole(weights: Weights, subject: Subject, batches: Sequence[Batch]) -> list[np.ndarray]:
    block = author_graph(weights.spec, _runnable(subject.options))
    with _Session(block, subject.data, subject.options.kernels) as session:
        return [session.run({name: _input(b, name) for name in INPUTS}) for b in batches]


class _BlockRunner:
    """Runs the authored blocks one after the other, each from its own session."""

    def __init__(self, weights: Weights, subject: Subject, batches: Sequence[Batch]) -> None:
        self._blocks = iter(author_blocks(weights.spec, _runnable(subject.options)))
        self._data, self._kernels = subject.data, subject.options.kernels
        self._batches = batches
        self._states: list[np.ndarray] = [np.empty(0)] * len(batches)

    def step(self) -> list[np.ndarray]:
        """Run the next block on every batch and return its outputs."""
        block = next(self._blocks)
        names = [value.name or "" for value in block.inputs]
        with _Session(block, self._data, self._kernels) as session:
            self._states = [
                session.run({n: _input(batch, n, state) for n in names})
                for batch, state in zip(self._batches, self._states, strict=True)
            ]
        return self._states


class _Session:
    """An ONNX Runtime session over a block, through a graph file beside the weights."""

    def __init__(self, block: Block, data: WeightData, kernels: Kernels) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "the self-check needs onnxruntime, which is not installed",
                "pip install 'nvembed-deploy[onnx]'",
            ) from error
        is_for_cpu = kernels is Kernels.CPU
        options = session_options(is_for_cpu=is_for_cpu)
        options.enable_cpu_mem_arena = False
        # Keep weights mapped from the file in their own precision: folding their casts, or packing
        # them, would hold a float32 copy of the block, for a graph that runs once. Products of
        # bytes have nothing to widen, and are exact on every processor only when optimised.
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_EXTENDED if is_for_cpu else levels.ORT_DISABLE_ALL
        )
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Widen a weight when its product is due, not all of a block at its start (0.3 GiB of 7B).
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.log_severity_level = 3
        self._path = data.path.with_name(".check.onnx")
        model = block.builder.model(block.inputs, block.output, block.opset, data)
        try:
            ir.save(model, self._path)
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(str(self._path), options, providers)
        finally:
            self._path.unlink(missing_ok=True)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        output: np.ndarray = self._session.run(None, inputs)[0]
        return output

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        del self._session


def _runnable(options: GraphOptions) -> GraphOptions:
    """ONNX Runtime's CPU has no bfloat16 kernels: run such weights in float32 arithmetic."""
    if options.precision is not Precision.BF16:
        return options
    return replace(options, compute=Precision.FP32)


def _tolerance(options: GraphOptions) -> Tolerance:
    linear = options.formats.linear
    return TOLERANCES[options.precision] if linear is None else QUANTIZED_TOLERANCES[linear.code]


def _input(batch: Batch, name: str, hidden: np.ndarray | None = None) -> np.ndarray:
    if name == "hidden":
        assert hidden is not None
        return hidden
    array: np.ndarray = getattr(batch, name + "_BS")
    return array


def _relative(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest difference over the largest value; what is no number is infinitely far."""
    difference = np.abs(expected - got.astype(np.float32))
    error = float(difference.max() / max(np.abs(expected).max(), 1e-12))
    return math.inf if math.isnan(error) else error


def _report(subject: Subject, pairs: _Pairs) -> CheckReport:
    expected_ND, got_ND = pairs.expected_ND.astype(np.float64), pairs.got_ND.astype(np.float64)
    norms = np.linalg.norm(expected_ND, axis=1) * np.linalg.norm(got_ND, axis=1)
    cosines = (expected_ND * got_ND).sum(1) / np.maximum(norms, 1e-12)
    tolerance = _tolerance(subject.options)
    mean, low = float(cosines.mean()), float(cosines.min())
    max_abs = float(np.abs(expected_ND - got_ND).max())
    runnable = _runnable(subject.options)
    compute = (runnable.compute or runnable.precision).value
    return CheckReport(
        passed=bool(
            mean >= tolerance.mean_cosine
            and low >= tolerance.min_cosine
            and max_abs <= tolerance.max_abs
        ),
        mean_cosine=mean,
        min_cosine=low,
        max_abs=max_abs,
        num_texts=len(cosines),
        method=pairs.method,
        arithmetic=f"onnxruntime cpu, {compute} graph",
        worst_block=pairs.worst_block,
        tolerance=tolerance,
    )


def _numbers(report: CheckReport) -> str:
    worst = f", worst {report.worst_block}" if report.worst_block else ""
    return (
        f"cosine mean {report.mean_cosine:.7f}, min {report.min_cosine:.7f}, "
        f"largest difference {report.max_abs:.2e} over {report.num_texts} texts{worst}"
    )
