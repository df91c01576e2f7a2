"""This file owns which engine of an artifact runs on a machine, and why another does not.

It decides by the records alone: no plan is opened to find out. What TensorRT itself refuses later
is `loaded_engine.py`'s to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvembed_deploy.engine_record import EngineRecord, Flavour

_PORTABLE = "portable"
_PORTABLE_FROM, _FP8_FROM = 80, 89
"""Source: TensorRT for RTX 1.7, "CPU-only AOT and portable engines": Ampere and later. A plan with
products in FP8 begins where those do: its own text says accelerators={sm89}, others' {sm80}."""
_NEXT_MAJOR = (10, 11)
"""Of plans for later versions, those that the next major version runs, beside those of the same.
Source: TensorRT 11.4's support matrix, engine portability; no others are supported."""
_COMPATIBLE_FROM = {"ampere_plus": 80}
"""Source: TensorRT's HardwareCompatibilityLevel. The other level, same_compute_capability, takes
what the record's targets say."""


@dataclass(frozen=True)
class Host:
    """What decides whether a plan runs here.

    Attributes:
        flavour: the product that is installed.
        version: of that product.
        target: the GPU: "sm90".
        supported: the GPUs that the product runs on; empty where it says nothing of them.
        gpu: the GPU's model, by NVIDIA's name; None where that is not known.
    """

    flavour: Flavour
    version: str
    target: str
    supported: tuple[str, ...] = ()
    gpu: str | None = None

    @property
    def is_supported(self) -> bool:
        """Whether the product runs on this GPU at all."""
        return not self.supported or self.target in self.supported

    def __str__(self) -> str:
        """Name the product and the GPU."""
        model = f" ({self.gpu})" if self.gpu else ""
        return f"{self.flavour} {self.version} on {self.target}{model}"


def choose_engine(engines: Mapping[str, EngineRecord], host: Host) -> str | None:
    """Return the name of the engine to run: of those that fit, the one made for fewest GPUs."""
    fitting = [name for name, record in engines.items() if why_not(record, host) is None]
    return min(fitting, key=lambda name: _breadth(engines[name]), default=None)


def why_not(record: EngineRecord, host: Host) -> str | None:
    """Say why an engine does not run here; None where it does."""
    if record.flavour is not host.flavour:
        return f"is of {record.flavour}"
    if not _fits_version(record, host.version):
        return f"was compiled by version {record.version}"
    if not _fits_gpu(record, host.target):
        oldest = _portable_from(record)
        return f"is for {', '.join(record.targets) if oldest is None else f'sm{oldest} and later'}"
    if record.gpu is not None and host.gpu is not None and record.gpu != host.gpu:
        return f"was tuned on {record.gpu}"  # on another, TensorRT warns, it may fail or hang
    return None


def explain(engines: Mapping[str, EngineRecord], host: Host) -> str:
    """Say, engine by engine, why none runs here."""
    if not engines:
        return "it holds no engine"
    return "; ".join(f"{name} {why_not(record, host)}" for name, record in engines.items())


def _fits_version(record: EngineRecord, version: str) -> bool:
    """Compare versions; a version-compatible plan carries a runtime for later ones."""
    if not record.options.get("version_compatible"):
        return record.version == version
    built, here = _numbers(record.version), _numbers(version)
    return built <= here and (built[0] == here[0] or (built[0], here[0]) == _NEXT_MAJOR)


def _fits_gpu(record: EngineRecord, target: str) -> bool:
    number = int(target.removeprefix("sm"))
    oldest = _portable_from(record)
    if oldest is not None:
        return number >= oldest
    lowest = _COMPATIBLE_FROM.get(str(record.options.get("hardware_compatible")))
    return target in record.targets or (lowest is not None and number >= lowest)


def _portable_from(record: EngineRecord) -> int | None:
    """Return the oldest GPU of a portable plan; None where a plan is for those it names."""
    if _PORTABLE not in record.targets:
        return None
    return _FP8_FROM if "fp8" in record.facts.linears else _PORTABLE_FROM


def _breadth(record: EngineRecord) -> tuple[bool, bool, bool, int]:
    """Order engines from the most specific: a plan for many GPUs is tuned for none."""
    is_wide = bool(record.options.get("hardware_compatible"))
    return _PORTABLE in record.targets, is_wide, record.gpu is None, len(record.targets)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
