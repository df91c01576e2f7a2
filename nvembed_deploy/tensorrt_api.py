"""This file owns TensorRT's vocabulary: the one place that imports `tensorrt` or `tensorrt_rtx`.

One adapter speaks to full TensorRT (10.13 to 11.4) and to TensorRT for RTX. Where they differ, the
difference is asked of the module (has it this class, this member?), not of a version number.
Networks are strongly typed everywhere: a tensor has the type that the graph gives it.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nvembed_deploy.engine_record import Flavour, Profile
from nvembed_deploy.errors import HardwareError, MissingPackageError

MODULES = {Flavour.TENSORRT: "tensorrt", Flavour.RTX: "tensorrt_rtx"}
INSTALL = {
    Flavour.TENSORRT: "pip install 'nvembed-deploy[tensorrt]'",
    Flavour.RTX: "pip install 'nvembed-deploy[tensorrt-rtx]'",
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Source: CUdevice_attribute in cuda.h (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR)."""

OnLog = Callable[[str, str], None]
"""Called with each line of TensorRT's log: severity ("warning", "error", ...) and text."""


class Sink(Protocol):
    """Takes a plan's bytes as they come."""

    def write(self, data: bytes, /) -> int:
        """Take some; return how many."""
        ...


@dataclass(frozen=True)
class Flags:
    """What may be asked of full TensorRT.

    Attributes:
        strip_weights: leave weights out of the plan that the graph's file holds; a runtime puts
            them back when it loads the plan.
        version_compatible: run on later versions of TensorRT too, through a runtime in the plan.
        hardware_compatible: "ampere_plus" or "same_compute_capability": run on more GPUs than this
            one, slower.
    """

    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: str | None = None


class Api:
    """One flavour's module, behind verbs that both flavours have."""

    def __init__(self, flavour: Flavour, module: Any) -> None:  # noqa: ANN401 - a module
        """Wrap an imported module."""
        self.flavour, self.module = flavour, module

    @property
    def version(self) -> str:
        """The product's version."""
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs that can be built for from here; empty where only this machine's own can."""
        capability = getattr(self.module, "ComputeCapability", None)
        names = capability.__members__ if capability is not None else ()
        return tuple(name.lower() for name in names if name.startswith("SM"))

    def logger(self, on_log: OnLog) -> Any:  # noqa: ANN401 - TensorRT's class
        """Return a logger that passes on warnings and worse."""
        trt = self.module
        named = {
            trt.ILogger.INTERNAL_ERROR: "error",
            trt.ILogger.ERROR: "error",
            trt.ILogger.WARNING: "warning",
        }

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
                if severity in named:
                    on_log(named[severity], text.strip())

        return Logger()

    def monitor(self, on_fraction: Callable[[float], None]) -> Any:  # noqa: ANN401
        """Return a progress monitor that reports the whole build's fraction, from 0 to 1."""
        trt, phases = self.module, Phases()

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
                phases.start(name, parent, num_steps)

            def step_complete(self, name: str, step: int) -> bool:
                phases.complete(name, step)
                on_fraction(phases.fraction)
                return True

            def phase_finish(self, name: str) -> None:
                phases.finish(name)

        return Monitor()

    def writer(self, file: Sink) -> Any:  # noqa: ANN401
        """Return a stream writer into `file`."""
        trt = self.module

        class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: bytes) -> int:
                return file.write(data)

        return Writer()

    def parse(self, builder: Any, logger: Any, graph: Path) -> tuple[Any, Any]:  # noqa: ANN401
        """Return the network of an ONNX file, and its parser: that owns the network's weights.

        Raises:
            ValueError: an operator cannot be parsed.
        """
        trt = self.module
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph)):
            errors = (parser.get_error(i) for i in range(parser.num_errors))
            raise ValueError(
                "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors)
            )
        return network, parser

    def config(self, builder: Any, targets: Iterable[str], flags: Flags) -> Any:  # noqa: ANN401
        """Return a build configuration for some GPUs.

        Args:
            builder: TensorRT's.
            targets: members of `self.targets`; none is every GPU that a portable plan runs on
                (RTX), or this machine's (full TensorRT).
            flags: what else is asked for.

        Raises:
            ValueError: this version cannot build for such a target.
        """
        trt, config = self.module, builder.create_builder_config()
        names = [target.upper() for target in targets]
        if names:
            config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                raise ValueError(f"{self.flavour} {self.version} does not build for {name}")
        # Allowed unless told otherwise, and then float32 is multiplied with ten bits of fraction.
        config.clear_flag(trt.BuilderFlag.TF32)
        if flags.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if flags.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if flags.hardware_compatible:
            levels = trt.HardwareCompatibilityLevel
            config.hardware_compatibility_level = getattr(levels, flags.hardware_compatible.upper())
        return config

    def profile(self, builder: Any, profile: Profile, inputs: Iterable[str]) -> Any:  # noqa: ANN401
        """Return a profile as TensorRT's own class, for the configuration.

        Raises:
            ValueError: TensorRT refuses it.
        """
        shapes = builder.create_optimization_profile()
        for name in inputs:
            shapes.set_shape(name, tuple(profile.min), tuple(profile.opt), tuple(profile.max))
        if not shapes:
            raise ValueError(f"profile {profile.name!r} does not fit the graph's inputs")
        return shapes

    def timings(self, config: Any, known: bytes) -> Any:  # noqa: ANN401
        """Return what a build starts from and adds to; anew where `known` is of another GPU."""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache

    def layer_names(self, plan: Path, logger: Any) -> list[str]:  # noqa: ANN401
        """Return the names of a plan's layers; needs the GPU it is for.

        The file is mapped: it is as large as the model.

        Raises:
            ValueError: the plan cannot be loaded here.
        """
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self.module.Runtime(logger).deserialize_cuda_engine(data)
        if engine is None:
            raise ValueError("the plan cannot be loaded on this machine")
        inspector, form = engine.create_engine_inspector(), self.module.LayerInformationFormat
        return [inspector.get_layer_information(i, form.ONELINE) for i in range(engine.num_layers)]


class Phases:
    """How far a build is, from TensorRT's nested phases."""

    def __init__(self) -> None:
        """Begin with no phase."""
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._reached = 0.0

    @property
    def fraction(self) -> float:
        """The part of the outermost phase that is done; it never shrinks."""
        roots = [name for name, parent in self._parents.items() if parent not in self._parents]
        now = min((self._part(name) for name in roots), default=0.0)
        self._reached = max(self._reached, now)
        return self._reached

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Begin a phase inside another one, or the outermost one."""
        self._parents[name], self._steps[name], self._done[name] = parent, max(num_steps, 1), 0

    def complete(self, name: str, step: int) -> None:
        """Note that a phase's step `step`, from 0, is done."""
        if name in self._done:
            self._done[name] = max(self._done[name], step + 1)

    def finish(self, name: str) -> None:
        """End a phase."""
        self._parents.pop(name, None)

    def _part(self, name: str) -> float:
        inner = [self._part(child) for child, parent in self._parents.items() if parent == name]
        return min(1.0, (self._done[name] + max(inner, default=0.0)) / self._steps[name])


def load_api(flavour: Flavour) -> Api:
    """Import a flavour.

    Raises:
        MissingPackageError: it is not installed.
        HardwareError: it is, but its libraries cannot be loaded here.
    """
    name = MODULES[flavour]
    try:
        return Api(flavour, importlib.import_module(name))
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{flavour} needs {error.name}, which is not installed", INSTALL[flavour]
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise HardwareError(
            f"{name} is installed, but cannot be loaded: {error}",
            f"install it again for this machine: {INSTALL[flavour]}",
        ) from error


def gpu_name() -> str | None:
    """Return the first GPU's model, as "NVIDIA H200"; None where there is none."""
    cuda, device = _first_gpu()
    name = ctypes.create_string_buffer(256)  # as long as cudaDeviceProp.name
    is_known = cuda is not None and not cuda.cuDeviceGetName(name, len(name), device)
    return name.value.decode() if is_known else None


def gpu_target() -> str | None:
    """Return the first GPU's compute capability, as "sm90"; None where there is none."""
    cuda, device = _first_gpu()
    target, digit = "sm", ctypes.c_int()
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        if cuda is None or cuda.cuDeviceGetAttribute(ctypes.byref(digit), attribute, device):
            return None
        target += str(digit.value)
    return target


def _first_gpu() -> tuple[ctypes.CDLL | None, ctypes.c_int]:
    """Return CUDA's driver and its first GPU; None where there is no such."""
    device = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None, device
    is_there = not (cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0))
    return (cuda if is_there else None), device
