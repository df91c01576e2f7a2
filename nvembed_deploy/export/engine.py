"""This file owns the making of an engine beside a graph: order, watch, and record.

The compiler runs in a process of its own (`engine_build.py`), which dies with this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nvembed_deploy
from nvembed_deploy import errors
from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.artifact_lock import unreplaced
from nvembed_deploy.engine_record import EngineRecord, Flavour, Profile
from nvembed_deploy.errors import HardwareError, NVEmbedError, RecipeError
from nvembed_deploy.export.engine_build import Order
from nvembed_deploy.export.engine_inspect import read_layers, read_plan
from nvembed_deploy.export.engine_options import PORTABLE, EngineOptions, GraphFacts
from nvembed_deploy.staging import sync
from nvembed_deploy.tensorrt_api import gpu_name, gpu_target

_LOG_LINES = 8
_ATTENTION_SINCE = (10, 15)
"""The first full TensorRT with opset 23's RMSNormalization and RotaryEmbedding."""
_MEMORY_FACTOR = 1.7
"""Memory that a build takes beside the files it maps, over the graph's weights: measured, see
docs/tensorrt.md."""

_TUNABLES = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold={1 << 40}"}
"""The compiler copies weights, gigabytes of them: in pages of 2 MiB, and with freed memory kept, it
takes a sixth less time (docs/tensorrt.md). Source: glibc's manual, Memory Allocation Tunables."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file in the artifact, and what the manifest says of it."""

    name: str
    sha256: str
    record: EngineRecord
    peak_bytes: int


def probe(options: EngineOptions, graph: GraphFacts) -> str:
    """Start the compiler once, without work; return its version.

    Raises:
        HardwareError: it is installed, but does not start here.
        MissingPackageError: it is not installed, or what the options need beside it.
        RecipeError: this version cannot build for a target, or cannot read the graph's opset.
    """
    with _Compiler(Order(options.flavour, flags=options.flags), 0) as compiler:
        ready = compiler.wait("ready")
    unknown = set(options.targets) - set(ready["targets"])
    if options.flavour is Flavour.RTX and unknown:
        raise RecipeError(
            f"{options.flavour} {ready['version']} does not build for {', '.join(sorted(unknown))}",
            f"update it, or choose from {', '.join(ready['targets'])}",
        )
    if options.flavour is Flavour.TENSORRT and graph.opset > 20:  # noqa: PLR2004
        _check_version(ready["version"], graph.opset)
    return str(ready["version"])


def engine_name(options: EngineOptions, version: str) -> str:
    """Return an engine's name in its artifact: whatever decides where it runs is in it."""
    gpu = re.sub(r"[^a-z0-9]+", "-", (_tuned_on(options) or "").lower()).strip("-")
    words = (options.flavour.value, version, *_targets(options), *filter(None, (gpu,)))
    return f"{LAYOUT.engines}/{'-'.join(words)}.plan"


def build_engine(
    folder: Path,
    inputs: tuple[str, ...],
    options: EngineOptions,
    profiles: tuple[Profile, ...],
    advance: Callable[[int], None] = lambda _: None,
) -> BuiltEngine:
    """Compile `folder`'s graph into `folder/engines`; a failure leaves nothing there.

    Args:
        folder: an artifact's folder, or the one that becomes it.
        inputs: the graph's inputs, each [batch, sequence].
        options: what to build.
        profiles: which batches it takes.
        advance: called with each per cent.

    Raises:
        ArtifactError: the plan cannot be written, or the folder was replaced meanwhile.
        HardwareError: the compiler died, or needs what is not here.
        RecipeError: TensorRT refused the graph.
    """
    weights_bytes = (folder / LAYOUT.weights).stat().st_size
    with unreplaced(folder) as check, _partial(folder / LAYOUT.engines) as partial:
        order = Order(
            flavour=options.flavour,
            graph=str(folder / LAYOUT.graph),
            plan=str(partial),
            inputs=inputs,
            targets=options.targets if options.flavour is Flavour.RTX else (),
            profiles=profiles,
            flags=options.flags,
            timing_cache=options.timing_cache,
        )
        with _Compiler(order, weights_bytes) as compiler:
            version = compiler.wait("ready")["version"]
            done = compiler.wait("done", advance)
        facts = read_plan(partial) if done["layers"] is None else read_layers(done["layers"])
        name = engine_name(options, version)
        check()
        partial.replace(folder / name)
        sync(folder / LAYOUT.engines)
    record = EngineRecord(
        flavour=options.flavour,
        version=version,
        targets=_targets(options),
        profiles=profiles,
        facts=facts,
        seconds=done["seconds"],
        options=options.asked,
        gpu=_tuned_on(options),
    )
    return BuiltEngine(name, done["sha256"], record, done["peak_bytes"])


def _targets(options: EngineOptions) -> tuple[str, ...]:
    """Return the GPUs that an engine will be for."""
    if options.targets or options.flavour is Flavour.RTX:
        return options.targets or (PORTABLE,)
    return (gpu_target() or PORTABLE,)


def _tuned_on(options: EngineOptions) -> str | None:
    """Return the GPU model that an engine will be for alone, if it is.

    Full TensorRT times its kernels on this machine's GPU, and its plans are for that model.
    """
    is_wide = options.flavour is Flavour.RTX or options.hardware_compatible
    return None if is_wide else gpu_name()


class _Compiler:
    """The child process: its events, the end of its log, and what its death means."""

    def __init__(self, order: Order, weights_bytes: int) -> None:
        self._order, self._weights_bytes = order, weights_bytes
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def __enter__(self) -> _Compiler:
        package = str(Path(nvembed_deploy.__file__).parents[1])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nvembed_deploy.export.engine_build"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_TUNABLES | os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(self._order.to_json().encode() + b"\n")
            self._process.stdin.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def wait(self, event: str, advance: Callable[[int], None] = lambda _: None) -> Any:  # noqa: ANN401
        """Return what the child says of an event; per cents of the way there go to `advance`."""
        shown = 0
        for line in self._process.stdout or ():
            ((kind, value),) = json.loads(line).items()
            if kind == event:
                advance(100 - shown)
                return value
            if kind == "fraction":
                now = int(100 * value)
                advance(now - shown)
                shown = now
            if kind == "log":
                self._log.append(f"[{value[0]}] {value[1]}")
            if kind == "error":
                raise getattr(errors, value["kind"])(value["problem"], value["fix"])
            if kind == "failed":
                raise self._refused(value)
        raise self._death(self._process.wait())

    def _refused(self, reason: str) -> NVEmbedError:
        return RecipeError(
            f"{self._order.flavour} did not build the graph: {reason}{self._last_lines()}",
            "other --target, --precision or --opset 20 may build; nothing was written",
        )

    def _death(self, code: int) -> NVEmbedError:
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        problem = f"{self._order.flavour}'s compiler died with {how}{self._last_lines()}"
        if code == -signal.SIGKILL:
            needed = _MEMORY_FACTOR * self._weights_bytes / (1 << 30)
            return HardwareError(
                problem,
                f"memory may have run out: a build takes about {needed:.1f} GiB beside the graph's "
                "own files; free some, or export with --precision fp8",
            )
        return HardwareError(problem, "nothing was written; try another --opset or version")

    def _last_lines(self) -> str:
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").splitlines()
        lines = [*self._log, *printed[-_LOG_LINES:]]
        return "".join(f"\n    {line}" for line in lines)


@contextmanager
def _partial(engines: Path) -> Iterator[Path]:
    """Yield a path for an unfinished plan; what is still there at the end is removed."""
    existed = engines.exists()
    engines.mkdir(exist_ok=True)
    partial = engines / f".partial-{os.getpid()}.plan"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        if not existed:
            with suppress(OSError):  # holds the finished engine
                engines.rmdir()


def _check_version(version: str, opset: int) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < _ATTENTION_SINCE:
        raise RecipeError(
            f"TensorRT {version} does not know all operators of opset {opset}",
            f"--opset 20; or TensorRT {'.'.join(map(str, _ATTENTION_SINCE))} or newer",
        )
