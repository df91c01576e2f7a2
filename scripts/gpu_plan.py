"""This file owns what scripts/gpu_host.py does on which machine: the steps in their order.

It needs the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_run import Machine, code
from gpu_steps import GB, ROOT, Step

PRECISIONS = ("fp16", "fp8", "int8", "bf16", "int8-weight", "int4-weight", "fp32")
"""The most wanted first: time may end."""
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int4-weight": 4.5}
_DEFAULT_BITS = 8
_FULL_LAYERS, _LAYER_PARAMETERS = 32, 0.218e9
_PARAMETERS, _CHECKPOINT_PARAMETERS = 7.35e9, 7.85e9
"""Of NV-Embed with a folded pooler, and as it is released."""
_ROOM = 1.25
"""Memory that an engine and its activations take, over the weights."""
_MORE_DISK = 1.05
_TORCH_BYTES, _TENSORRT_BYTES = 8 * GB, 6 * GB
"""Of the packages with what they need: a guess, on the safe side."""
_DRIVER = 580
"""The first driver for CUDA 13, which TensorRT 11 is built for."""


@dataclass(frozen=True)
class Host:
    """A machine, what is asked for on it, and where that lies."""

    args: argparse.Namespace
    machine: Machine
    folder: Path
    """Of this run's results, logs and artifacts."""

    @property
    def python(self) -> str:
        """The interpreter that has everything."""
        return str(self.args.python or self.args.work / "venv" / "bin" / "python")

    @property
    def checkpoint(self) -> Path:
        """Yours, or a random one that several runs share."""
        name = f"checkpoint-{self.args.layers}-layers-{code()[:8]}"
        return Path(self.args.checkpoint or self.args.work / name)

    @property
    def before(self) -> tuple[str, ...]:
        """The step after which the environment is whole."""
        return () if self.args.python else ("install",)

    @property
    def has_checkpoint(self) -> tuple[str, ...]:
        """The step after which the checkpoint is there."""
        return self.before if self.args.checkpoint else ("checkpoint",)

    @property
    def dtype(self) -> str:
        """The number format of the reference."""
        return "fp32" if self.fits("fp32") else "bf16"

    @property
    def rows(self) -> Path:
        """The reference's embeddings."""
        return self.folder / "reference.npy"

    @property
    def wrong_driver(self) -> str | None:
        """Why the driver runs nothing of this."""
        driver = self.machine.driver
        is_old = int(driver.split(".")[0]) < _DRIVER
        return f"driver {driver}: CUDA 13 needs {_DRIVER} or newer" if is_old else None

    def parameters(self, full: float = _PARAMETERS) -> float:
        """Return how many there are, of `full` at full size; of yours, from its files' size."""
        if self.args.checkpoint is None:
            return full - (_FULL_LAYERS - int(self.args.layers)) * _LAYER_PARAMETERS
        files = [p for p in self.checkpoint.rglob("*") if p.suffix in (".safetensors", ".gguf")]
        return min(full, sum(p.stat().st_size for p in files) / 2) if files else full

    def weights_bytes(self, precision: str) -> float:
        """Return the bytes of all weights in a precision."""
        return self.parameters() * _BITS.get(precision, _DEFAULT_BITS) / 8

    def fits(self, precision: str) -> bool:
        """Say whether the weights fit the GPU, with room."""
        return self.weights_bytes(precision) * _ROOM <= self.machine.memory_mib << 20

    def unfit(self, precision: str) -> str | None:
        """Say why this GPU cannot run a precision."""
        if precision == "fp8" and int(self.machine.capability) < 89:  # noqa: PLR2004
            return f"sm{self.machine.capability} cannot compute in FP8, which begins with sm89"
        if not self.fits(precision):
            return f"{precision} weights do not fit {self.machine.memory_mib} MiB"
        return None


def plan(host: Host) -> Iterator[Step]:
    """Yield the steps in order."""
    if host.args.python is None:
        yield from _plan_environment(host)
    for flavour in host.machine.flavours:
        target = _target(flavour, host.machine)
        command = (host.python, "-m", "benchmarks.engine_probe", "--engine", flavour, *target)
        yield Step(f"probe-{flavour}", command, host.before, skipped=host.wrong_driver)
    if host.args.checkpoint is None:
        path = str(host.checkpoint)
        command = (host.python, "-m", "benchmarks.random_checkpoint", path)
        yield Step(
            "checkpoint",
            (*command, "--layers", str(host.args.layers)),
            host.before,
            done=(str(host.checkpoint / "model.safetensors"),),
            disk_bytes=int(2 * host.parameters(_CHECKPOINT_PARAMETERS)),
        )
    yield Step(
        f"reference-torch-{host.dtype}",
        (
            *_speed(host, host.checkpoint, "torch"),
            *("--device", "cuda", "--dtype", host.dtype, "--save", str(host.rows)),
            *("--repeats", "0", "--json", str(host.folder / f"result-torch-{host.dtype}.json")),
        ),
        host.has_checkpoint,
        done=(str(host.rows),),
        skipped=host.wrong_driver,
    )
    for precision in dict.fromkeys(host.args.precision or PRECISIONS):
        yield from _plan_precision(host, precision)


def _plan_environment(host: Host) -> Iterator[Step]:
    """Yield what makes the environment; the machine's runs share it."""
    venv, wrong = host.args.work / "venv", host.wrong_driver
    pip = (host.python, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", "constraints.txt")
    extras = "export,onnx,tensorrt" + (",tensorrt-rtx" if host.machine.is_rtx else "")
    pinned = (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    version = hashlib.sha256(pinned + extras.encode()).hexdigest()[:8]
    made, torch, install = (
        str(venv / mark) for mark in (".made", ".torch-2.13.0", f".installed-{version}")
    )
    command = (sys.executable, "-m", "venv", "--clear", str(venv))
    yield Step("venv", command, done=(made,), marks=made, skipped=wrong)
    for name, what, needs, mark, disk_bytes in (
        ("torch", ("torch==2.13.0",), "venv", torch, _TORCH_BYTES),
        ("install", ("-e", f".[{extras}]"), "torch", install, _TENSORRT_BYTES),
    ):
        yield Step(
            name,
            (*pip, *what),
            (needs,),
            done=(mark,),
            marks=mark,
            skipped=wrong,
            disk_bytes=disk_bytes,
        )


def _plan_precision(host: Host, precision: str) -> Iterator[Step]:
    """Yield the steps of one precision: export, and for each flavour compile and measure."""
    args, flavours, reason = host.args, host.machine.flavours, host.unfit(precision)
    artifact = host.folder / f"artifact-{precision}"
    results = [str(host.folder / f"result-{flavour}-{precision}.json") for flavour in flavours]
    disk_bytes = int(host.weights_bytes(precision) * (1 + len(flavours)) * _MORE_DISK)
    yield Step(
        f"export-{precision}",
        _export(host, precision, artifact),
        host.has_checkpoint,
        tuple(f"probe-{flavour}" for flavour in flavours),
        (str(artifact / "manifest.json"),),
        tuple(results),
        skipped=reason,
        disk_bytes=disk_bytes,
    )
    ours = (host.python, "-m", "nvembed_deploy", "compile", str(artifact), "--engine")
    for flavour, result in zip(flavours, results, strict=True):
        compiled = f"compile-{flavour}-{precision}"
        yield Step(
            compiled,
            (*ours, flavour, *_target(flavour, host.machine)),
            (f"export-{precision}", f"probe-{flavour}"),
            done=(result,),
            skipped=reason,
        )
        measure = (*_speed(host, artifact, flavour), "--reference", str(host.rows))
        timed = ("--repeats", str(args.repeats), "--seconds", f"{args.seconds:g}")
        yield Step(
            f"measure-{flavour}-{precision}",
            (*measure, *timed, "--json", result),
            (compiled, f"reference-torch-{host.dtype}"),
            done=(result,),
            skipped=reason,
            frees=str(artifact) if flavour == flavours[-1] else None,
        )


def _export(host: Host, precision: str, artifact: Path) -> tuple[str, ...]:
    ours = (host.python, "-m", "nvembed_deploy", "export", str(host.checkpoint), str(artifact))
    command = (*ours, "--precision", precision)
    if precision == "fp32":
        return (*command, "--opset", "20")  # no kernel has fp32 attention
    if precision in ("fp16", "bf16"):
        return command
    # Calibrating 7B on processors takes hours; rounding to nearest reads no texts, on any device.
    device = ("--device", "cuda") if host.args.rounding != "nearest" else ()
    return (*command, "--rounding", host.args.rounding, *device)


def _speed(host: Host, source: Path, runtime: str) -> tuple[str, ...]:
    return (host.python, "-m", "benchmarks.engine_speed", str(source), "--runtime", runtime)


def _target(flavour: str, machine: Machine) -> tuple[str, ...]:
    return ("--target", f"sm{machine.capability}") if flavour == "tensorrt-rtx" else ()
