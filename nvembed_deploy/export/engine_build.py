"""This file owns the process that compiles one engine: an operator can crash TensorRT's builder.

`engine.py` starts it: an order as JSON on standard input, events as lines of JSON on standard
output. What TensorRT itself prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Self

from nvembed_deploy.engine_record import Flavour, Profile
from nvembed_deploy.errors import ArtifactError, MissingPackageError, NVEmbedError
from nvembed_deploy.export.memory import peak_bytes
from nvembed_deploy.tensorrt_api import Api, Flags, load_api

Emit = Callable[[dict[str, Any]], None]
_DIE_WITH_PARENT = 1
"""Source: PR_SET_PDEATHSIG of prctl(2), linux/prctl.h."""
_GRAIN = 0.01
"""How much further a build is at each report of its progress."""


@dataclass(frozen=True)
class Order:
    """What to compile; without a graph, only what can be compiled here is asked."""

    flavour: Flavour
    graph: str | None = None
    plan: str = ""
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    flags: Flags = field(default_factory=Flags)
    timing_cache: str | None = None

    def to_json(self) -> str:
        """Return the line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`'s line."""
        data = json.loads(text)
        return cls(
            **data
            | {
                "flavour": Flavour(data["flavour"]),
                "profiles": tuple(Profile.from_dict(p) for p in data["profiles"]),
                "flags": Flags(**data["flags"]),
            }
        )


class _HashingFile:
    """A file that is hashed while it is written, beside it: a plan is as large as the model.

    TensorRT drops what is raised in `write`, ignores what it returns, and says that all went well:
    the error is kept, and raised at the end.
    """

    def __init__(self, file: BinaryIO, hasher: Executor) -> None:
        self._file, self._hasher, self.digest = file, hasher, hashlib.sha256()
        self._num_bytes = 0
        self._error: Exception | None = None

    def write(self, data: bytes) -> int:
        if self._error is not None:
            return 0
        hashed = self._hasher.submit(self.digest.update, data)
        try:
            self._file.write(data)
        except Exception as error:
            self._error = error
            return 0
        finally:
            hashed.result()
        self._num_bytes += len(data)
        return len(data)

    def finish(self) -> None:
        """Wait until all is on the disk.

        Raises:
            OSError: it is not, or not all of it.
        """
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        if size != self._num_bytes:
            raise OSError(f"got {size} bytes on the disk, expected {self._num_bytes}")


def build(order: Order, api: Api, emit: Emit) -> None:
    """Compile a graph and write the plan; emits `log`, `fraction` and at the end `done`."""
    started = time.monotonic()
    logger = api.logger(lambda severity, text: emit({"log": [severity, text]}))
    plan = _compile(order, api, logger=logger, emit=emit)
    done = {"sha256": plan.digest.hexdigest(), "seconds": round(time.monotonic() - started, 1)}
    emit({"done": done | {"peak_bytes": peak_bytes(), "layers": _layers(order, api, logger)}})


def _compile(order: Order, api: Api, *, logger: Any, emit: Emit) -> _HashingFile:  # noqa: ANN401
    """Write the plan. What that takes, the network's weights among it, is freed on return."""
    assert order.graph is not None
    builder = api.module.Builder(logger)
    network, _parser = api.parse(builder, logger, Path(order.graph))
    config = api.config(builder, order.targets, order.flags)
    for profile in order.profiles:
        config.add_optimization_profile(api.profile(builder, profile, order.inputs))
    if order.timing_cache:
        kept = Path(order.timing_cache)
        timings = api.timings(config, kept.read_bytes() if kept.exists() else b"")
    config.progress_monitor = api.monitor(_stepwise(emit))
    with _plan_file(order) as plan:
        if not builder.build_serialized_network_to_stream(network, config, api.writer(plan)):
            raise ValueError("TensorRT could not build it")
    if order.timing_cache:
        _keep(kept, bytes(timings.serialize()))
    return plan


@contextmanager
def _plan_file(order: Order) -> Iterator[_HashingFile]:
    """Yield the plan's file; it is whole and on the disk when the block is left.

    Raises:
        ArtifactError: it is not.
    """
    try:
        with Path(order.plan).open("wb") as file, ThreadPoolExecutor(max_workers=1) as hasher:
            plan = _HashingFile(file, hasher)
            yield plan
            plan.finish()
    except OSError as error:
        raise ArtifactError(
            f"the engine {order.plan} cannot be written: {error}",
            "free space, or work on another disk: it is as large as the graph's weights; nothing "
            "was written",
        ) from error


def _layers(order: Order, api: Api, logger: Any) -> list[str] | None:  # noqa: ANN401
    """Ask the loaded engine where it can be loaded: full TensorRT built it for this GPU.

    Whatever goes wrong: this is for people to read, and the plan took minutes.
    """
    if order.flavour is Flavour.RTX or order.flags.strip_weights:
        return None
    try:
        return api.layer_names(Path(order.plan), logger)
    except Exception:
        return None


def _load_lean_runtime(version: str) -> None:
    """Load the runtime that a version-compatible plan takes along; TensorRT asks for it by name.

    Raises:
        MissingPackageError: it is not installed.
    """
    major = version.partition(".")[0]
    windows = sys.platform == "win32"
    name = f"nvinfer_lean_{major}.dll" if windows else f"libnvinfer_lean.so.{major}"
    try:
        with suppress(ModuleNotFoundError):  # it may lie where the system finds it
            import_module("tensorrt_lean_libs")
        ctypes.CDLL(name)
    except OSError as error:
        raise MissingPackageError(
            f"a version-compatible plan takes {name} along, which cannot be loaded: {error}",
            f"pip install tensorrt-lean=={version}",
        ) from error


def _stepwise(emit: Emit) -> Callable[[float], None]:
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if fraction - last >= _GRAIN:
            last = fraction
            emit({"fraction": fraction})

    return report


def _keep(path: Path, data: bytes) -> None:
    """Write a file of timings; where that fails, the plan, which took minutes, is whole without."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _take_stdout() -> BinaryIO:
    """Return the real standard output, and send everything else there to standard error."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return events


def main() -> int:
    """Read an order, carry it out; the exit code is 0 if the last event is `done` or `ready`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    events = _take_stdout()

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event).encode() + b"\n")

    order = Order.from_json(sys.stdin.readline())
    try:
        api = load_api(order.flavour)
        if order.flags.version_compatible:
            _load_lean_runtime(api.version)
        emit({"ready": {"version": api.version, "targets": list(api.targets)}})
        if order.graph is not None:
            build(order, api, emit)
    except NVEmbedError as error:
        emit({"error": {"kind": type(error).__name__, "problem": error.problem, "fix": error.fix}})
        return error.exit_code
    except (ValueError, OSError) as error:
        emit({"failed": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
