"""This file owns what may be asked of an engine, and what is refused before any minute is spent.

The rules are measured: each stands for builds that were tried (docs/tensorrt.md has the table).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nvembed_deploy.engine_record import Flavour, Profile
from nvembed_deploy.errors import HardwareError, RecipeError
from nvembed_deploy.export.formats import Code
from nvembed_deploy.spec import Precision
from nvembed_deploy.tensorrt_api import Flags, gpu_target

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
PORTABLE = "portable"
"""One plan for every GPU from SM80 on that TensorRT for RTX knows; what no target means."""
COMPATIBILITIES = ("ampere_plus", "same_compute_capability")
_FP8_FROM, _AMPERE, _ATTENTION_OPSET = 89, 80, 23
_SHORTEST, _FP8_ATTENTION_TOKENS, _FP8_ATTENTION_WIDTHS = 2, 32, (64, 128, 256)
"""BOS and EOS, as a profile from 1 token on is not fused; in FP8 neither is one from 31 on."""
_HEAD_WIDTHS = range(16, 257, 8)
"""Widths that the fused attention kernels take; beyond them the Attention operator fails."""


@dataclass(frozen=True)
class EngineOptions:
    """What to build. Paths are for this build alone: they are not written to the manifest."""

    flavour: Flavour
    targets: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    """In the place of the built-in ones."""
    profile_from: str | None = None
    """JSONL of texts whose lengths the profiles are made for."""
    timing_cache: str | None = None
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: str | None = None

    @property
    def label(self) -> str:
        """Say what is built, in few words."""
        return " ".join((self.flavour.value, *self.targets))

    @property
    def flags(self) -> Flags:
        """What else is asked of TensorRT."""
        return Flags(self.strip_weights, self.version_compatible, self.hardware_compatible)

    @property
    def asked(self) -> dict[str, Any]:
        """The flags that were given, as an engine's record has them."""
        return {name: value for name, value in vars(self.flags).items() if value}


@dataclass(frozen=True)
class GraphFacts:
    """What decides whether a graph can be built."""

    precision: Precision
    opset: int
    head_width: int
    code: Code | None = None
    """Of quantised linears."""
    fp8_attention: bool = False

    @property
    def shortest(self) -> int:
        """Tokens that a profile begins at: fewer cost TensorRT its fused attention."""
        return _FP8_ATTENTION_TOKENS if self.fp8_attention else _SHORTEST


def engine_table(engine: Any) -> dict[str, Any]:  # noqa: ANN401 - TOML
    """Return a recipe's `engine` as a table; one that is no table is the flavour."""
    return engine if isinstance(engine, dict) else {"flavour": engine}


def engine_options(table: Any) -> tuple[EngineOptions | None, str | None]:  # noqa: ANN401 - TOML
    """Return the options of a recipe's `[engine]` table, or every mistake in it."""
    table = engine_table(table)
    known = [field.name for field in fields(EngineOptions)]
    mistakes = [f"unknown key {key!r}, expected {known}" for key in sorted({*table} - {*known})]
    values: dict[str, Any] = {}
    for key in (name for name in known if name in table):
        try:
            values[key] = _READERS[key](table[key])
        except ValueError as error:
            mistakes.append(f"{key} is {table[key]!r}, {error}")
    if "flavour" not in table:
        mistakes.append(
            f"{', '.join(table)} without flavour (--engine), one of {[f.value for f in Flavour]}"
        )
    if "profiles" in table and "profile_from" in table:
        mistakes.append("both profiles and profile_from are given")
    if mistakes:
        return None, "engine: " + "; ".join(mistakes)
    return EngineOptions(**values), None


def check_engine(options: EngineOptions, graph: GraphFacts) -> None:
    """Refuse a build that is known to fail.

    Raises:
        HardwareError: it needs a GPU that is not here.
        RecipeError: the options do not go together.
    """
    if options.flavour is Flavour.RTX:
        _check_rtx(options, graph)
    else:
        _check_tensorrt(options)
    _check_attention(graph)
    _check_fp8_attention(options, graph)


def _check_rtx(options: EngineOptions, graph: GraphFacts) -> None:
    unknown = [target for target in options.targets if target not in RTX_TARGETS]
    if unknown:
        raise RecipeError(
            f"TensorRT for RTX does not build for {', '.join(unknown)}, "
            f"only for {', '.join(RTX_TARGETS)}",
            "for any other NVIDIA GPU (sm90 is H100 and H200): on a machine that has it, "
            "--engine tensorrt without --target",
        )
    for asked, name, reason in (
        (options.strip_weights, "strip_weights", "it cannot build such a plan without a GPU"),
        (options.version_compatible, "version_compatible", "it has no lean runtime"),
        (options.hardware_compatible, "hardware_compatible", "name several targets instead"),
        (options.timing_cache, "timing_cache", "it times no kernels while it builds"),
    ):
        if asked:
            raise RecipeError(f"{name} is not for TensorRT for RTX: {reason}", f"remove {name}")
    _check_types(options.targets, graph)


def _check_types(targets: tuple[str, ...], graph: GraphFacts) -> None:
    """Compare the graph's number formats with what the oldest target computes."""
    oldest = min((int(target[2:]) for target in targets), default=None)
    if oldest is None:
        return
    old = ", ".join(target for target in targets if int(target[2:]) < _FP8_FROM)
    if graph.code is Code.FP8 and oldest < _FP8_FROM:
        raise RecipeError(
            f"{old} cannot compute in FP8, which begins with sm{_FP8_FROM}",
            "remove that target, or export with --precision int8",
        )
    if graph.code is Code.INT4 and oldest < _AMPERE:
        raise RecipeError(
            f"sm{oldest} has no kernels for 4-bit weights, which begin with sm{_AMPERE}",
            f"remove sm{oldest}, or export with --precision int8-weight",
        )
    if graph.precision is not Precision.FP16 and oldest < _AMPERE:
        raise RecipeError(
            f"sm{oldest} cannot multiply matrices in {graph.precision}",
            f"remove sm{oldest}, or export with --precision fp16",
        )


def _check_tensorrt(options: EngineOptions) -> None:
    if options.strip_weights and options.version_compatible:
        raise RecipeError(
            "strip_weights and version_compatible do not go together: the lean runtime that such a "
            "plan takes along cannot put weights back",
            "remove one of them",
        )
    here = gpu_target()
    if here is None:
        raise HardwareError(
            "TensorRT builds on the GPU that it builds for, and there is none here",
            "run this on the GPU host; or --engine tensorrt-rtx, which needs no GPU to build for "
            f"{', '.join(RTX_TARGETS)}",
        )
    others = [target for target in options.targets if target != here]
    if others:
        raise HardwareError(
            f"TensorRT builds for this machine's GPU, {here}, not for {', '.join(others)}",
            "leave --target away, or run this on a machine with that GPU",
        )
    if options.timing_cache and not Path(options.timing_cache).parent.is_dir():
        raise RecipeError(
            f"timing_cache is {options.timing_cache}, in a folder that is not there",
            "make that folder first",
        )


def _check_attention(graph: GraphFacts) -> None:
    if graph.opset < _ATTENTION_OPSET:
        return
    problem = None
    if graph.precision is Precision.FP32:
        problem = "no attention kernel of TensorRT computes in fp32"
    elif graph.head_width not in _HEAD_WIDTHS:
        problem = f"no attention kernel of TensorRT takes heads that are {graph.head_width} wide"
    if problem:
        raise RecipeError(
            f"{problem}, and opset {graph.opset} leaves it no other way",
            "export with --opset 20: attention as elementary operators",
        )


def _check_fp8_attention(options: EngineOptions, graph: GraphFacts) -> None:
    if not graph.fp8_attention:
        return
    if graph.head_width not in _FP8_ATTENTION_WIDTHS:
        raise RecipeError(
            f"no FP8 attention kernel takes heads that are {graph.head_width} wide, only "
            f"{', '.join(map(str, _FP8_ATTENTION_WIDTHS))}",
            "export without --fp8-attention",
        )
    for profile in options.profiles:
        if profile.min.sequence < graph.shortest:
            raise RecipeError(
                f"profile {profile.name!r} begins at {profile.min.sequence} tokens, and FP8 "
                f"attention is fused from {graph.shortest} on",
                f"begin it at {graph.shortest}: shorter texts are padded to it",
            )


def _flavour(value: object) -> Flavour:
    try:
        return Flavour(str(value))
    except ValueError:
        raise ValueError(f"expected one of {[f.value for f in Flavour]}") from None


def _targets(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("expected GPUs, as sm89,sm120")
    clean = tuple(dict.fromkeys(name.strip().lower().replace("_", "") for name in names))
    if clean == (PORTABLE,):
        return ()
    wrong = [name for name in clean if not (name.startswith("sm") and name[2:].isdecimal())]
    if wrong:
        raise ValueError("expected GPUs, as sm89,sm120")
    return tuple(sorted(clean, key=lambda name: int(name[2:])))  # in any order they are one engine


def _profiles(value: object) -> tuple[Profile, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of tables with name, min, opt and max")
    profiles = tuple(Profile.from_dict(data) for data in value)
    if len({profile.name for profile in profiles}) < len(profiles):
        raise ValueError("two profiles have one name")
    return profiles


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a path")
    return value


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004
    return value


def _compatibility(value: object) -> str:
    if value not in COMPATIBILITIES:
        raise ValueError(f"expected one of {list(COMPATIBILITIES)}")
    return str(value)


_READERS: dict[str, Any] = {
    "flavour": _flavour,
    "targets": _targets,
    "profiles": _profiles,
    "profile_from": _text,
    "timing_cache": _text,
    "strip_weights": _yes_or_no,
    "version_compatible": _yes_or_no,
    "hardware_compatible": _compatibility,
}
