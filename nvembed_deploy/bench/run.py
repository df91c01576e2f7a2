"""This file owns a whole run: every side started, every mix measured, every process ended."""

from __future__ import annotations

import datetime
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from nvembed_deploy.bench.machine import gpu_bytes, machine, versions
from nvembed_deploy.bench.measure import Effort, MixRun, Note, Workers, measure_mix
from nvembed_deploy.bench.mixes import DEFAULT, Lengths, Mix, check_fits, check_mixes, make_mix
from nvembed_deploy.bench.process import WorkerProcess, start
from nvembed_deploy.bench.report import MixNumbers, Report, SideStart, summarize
from nvembed_deploy.bench.scaling import measure_scaling
from nvembed_deploy.bench.side import Side, check_packages
from nvembed_deploy.errors import InputError, NVEmbedError
from nvembed_deploy.spec import ModelSpec, TextSpec

Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        sides: ours first; the first is who the others are compared with.
        checkpoint: whose weights the competitors get; None where none needs them.
        mixes: names or files.
        effort: how long.
        starts: how often each side is started; load and cold start are medians.
        seed: of the choice of texts.
        has_scaling: whether to measure the cost against batch, length and corpus too.
    """

    sides: list[Side]
    checkpoint: Path | None = None
    mixes: tuple[str, ...] = DEFAULT
    effort: Effort = field(default_factory=Effort)
    starts: int = 2
    seed: int = 0
    has_scaling: bool = False


@dataclass
class _Start:
    """What was seen when a side was started."""

    load: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    dimensions: int = 0


def run_benchmark(plan: Plan, note: Note) -> Report:
    """Measure all of a plan.

    Raises:
        NVEmbedError: there is no such mix, a side cannot be opened, or the first one fails; its
            name is in the message.
    """
    check_mixes(plan.mixes)
    check_packages(plan.sides)
    before = machine()
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with ExitStack() as stack:
        sides = stack.enter_context(_with_weights(plan, note))
        workers, starts = _start_all(replace(plan, sides=sides), stack, note)
        first = next(iter(starts.values())).facts
        spec = ModelSpec.from_dict(first["spec"])
        lengths = _counter(workers)
        mixes = _measure_all(plan, _Model(spec, lengths), workers, starts, note)
        scaling = None
        if plan.has_scaling:
            limit = spec.text.max_tokens
            scaling = _of_those_that_last(
                workers, lambda lasting: measure_scaling(lasting, lengths, limit, note), note
            )
        begun = _starts(starts, workers, sides)
        faults = {name: w.fault.problem for name, w in workers.items() if w.fault is not None}
    settings = {
        "sides": [side.to_dict() for side in plan.sides],
        "effort": asdict(plan.effort),
        "starts": plan.starts,
        "seed": plan.seed,
    }
    return Report(date, before, versions(), settings, begun, mixes, scaling, faults)


@contextmanager
def _with_weights(plan: Plan, note: Note) -> Iterator[list[Side]]:
    """Yield the sides, the competitors with a folder of weights in their own formats."""
    needing = [side for side in plan.sides if side.needs_weights]
    with tempfile.TemporaryDirectory(prefix="nvembed-bench-") as folder:
        if needing:
            note("write the weights for the competitors")
            is_traced = any(side.kind == "onnx-traced" for side in needing)
            with WorkerProcess("weights") as worker:
                request = {"checkpoint": str(plan.checkpoint), "folder": folder}
                worker.ask("prepare", **request, is_traced=is_traced)
        yield [replace(s, path=folder) if s.needs_weights else s for s in plan.sides]


def _start_all(plan: Plan, stack: ExitStack, note: Note) -> tuple[Workers, dict[str, _Start]]:
    """Start every side several times, in turns; the last ones stay.

    Raises:
        InputError: the first side's model cannot take texts as long as a mix's, or a side's rows
            are not as long as its own.
    """
    workers: Workers = {}
    starts = {side.name: _Start() for side in plan.sides}
    text: TextSpec | None = None
    for number in range(plan.starts):
        for side in plan.sides:
            note(f"start {side.name}")
            worker, opened = start(side if text is None else side.told(text))
            seen = starts[side.name]
            seen.load.append(opened["load_seconds"])
            seen.cold.append(opened["cold_start_seconds"])
            seen.facts, seen.dimensions = opened["facts"], opened["dimensions"]
            if number < plan.starts - 1:
                worker.close()
            else:
                workers[side.name] = stack.enter_context(worker)
            text = text or _text_spec(plan.mixes, seen.facts)
            _check_dimensions(starts)
    return workers, starts


def _check_dimensions(starts: dict[str, _Start]) -> None:
    (first, wanted), *others = ((n, seen.dimensions) for n, seen in starts.items())
    for name, dimensions in others:
        if dimensions not in {0, wanted}:
            raise InputError(
                f"{name} gives rows of {dimensions} numbers, {first} of {wanted}",
                "measure sides of one model",
            )


def _text_spec(mixes: Iterable[str], facts: dict[str, Any]) -> TextSpec:
    """Return how the first side takes texts, which are long enough for all mixes."""
    text = ModelSpec.from_dict(facts["spec"]).text
    for name in mixes:
        check_fits(name, text.max_tokens)
    return text


@dataclass(frozen=True)
class _Model:
    """The first side's: its sizes, and how it counts tokens."""

    spec: ModelSpec
    lengths: Lengths


def _counter(workers: Workers) -> Lengths:
    """Return what counts the tokens of texts: the first side's own tokeniser."""
    first = next(iter(workers.values()))

    def lengths(texts: list[str]) -> list[int]:
        counted: list[int] = first.ask("tokenize", groups=[["", texts]])["lengths"]
        return counted

    return lengths


def _measure_all(
    plan: Plan, model: _Model, workers: Workers, starts: dict[str, _Start], note: Note
) -> list[MixNumbers]:
    spec = model.spec
    facts = {name: seen.facts for name, seen in starts.items()}
    request = {
        "hidden": spec.backbone.hidden_size,
        "feed": spec.backbone.intermediate_size,
        "dtypes": sorted({"fp32", *(str(f.get("dtype", "fp32")) for f in facts.values())}),
        "device": next(iter(facts.values())).get("device", "cpu").partition(",")[0],
    }
    found = []
    with WorkerProcess("ceiling", plan.sides[0].threads) as worker:
        for name in plan.mixes:
            mix = make_mix(name, model.lengths, spec.text.max_tokens, plan.seed)

            def measure(lasting: Workers, mix: Mix = mix) -> MixRun:
                return measure_mix(
                    mix, lasting, lambda: worker.ask("ceiling", **request), plan.effort, note
                )

            run = _of_those_that_last(workers, measure, note)
            found.append(summarize(run, spec, facts))
    return found


def _of_those_that_last(workers: Workers, measure: Callable[[Workers], Found], note: Note) -> Found:
    """Return what `measure` does, begun anew without a side that fails in it.

    Raises:
        NVEmbedError: the first side failed, or what is no side.
    """
    first = next(iter(workers.values()))
    while True:
        lasting = {name: worker for name, worker in workers.items() if worker.fault is None}
        try:
            return measure(lasting)
        except NVEmbedError as error:
            fallen = [worker for worker in lasting.values() if worker.fault is not None]
            if not fallen or first in fallen:
                raise
            note(f"{error.problem}; going on without it")
            fallen[0].close()


def _starts(starts: dict[str, _Start], workers: Workers, sides: list[Side]) -> dict[str, SideStart]:
    on_gpu = gpu_bytes(worker.pid for worker in workers.values())
    found = {}
    for side in sides:
        seen, worker = starts[side.name], workers[side.name]
        facts = {key: value for key, value in seen.facts.items() if key != "spec"}
        if side.url:  # the worker's own are not the server's
            found[side.name] = SideStart(None, None, None, None, facts)
            continue
        load, cold = statistics.median(seen.load), statistics.median(seen.cold)
        peak = None if worker.fault else worker.ask("memory")["peak_bytes"]
        found[side.name] = SideStart(load, cold, peak, on_gpu.get(worker.pid), facts)
    return found
