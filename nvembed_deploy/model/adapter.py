"""This file owns merging a PEFT LoRA adapter into weights, row by row, in float32.

W' = W + s B A (LoRA, arXiv 2106.09685), with s = alpha / r or alpha / sqrt(r) (rank-stabilised,
arXiv 2312.03732); with DoRA (arXiv 2402.09353) each output row is then rescaled to its learned
magnitude: W'' = m * W' / |W'|. What PEFT can train and this cannot merge is refused by name.
Source of the key layout and option names: peft `tuners/lora/config.py`, `utils/save_and_load.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.config import read_json
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.names import our_name
from nvembed_deploy.spec import what_fits
from nvembed_deploy.tensordtype import find_nonfinite
from nvembed_deploy.tensorfile import TensorEntry, open_tensors

_MERGEABLE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "lora_ga_config": (None,),
    "alora_invocation_tokens": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Option -> values under which W + s B A is right. Other initialisations (PiSSA, OLoRA, LoftQ,
CorDA) subtract from the base weights, which a saved adapter does not show."""
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)


@dataclass(frozen=True)
class _Linear:
    module: str
    """Its name in the model that was adapted, which the config's patterns speak of."""
    parts: dict[str, TensorEntry]


@dataclass(frozen=True)
class _Delta:
    down: np.ndarray  # [r, in]
    up: np.ndarray  # [out, r]
    scale: float
    magnitude: np.ndarray | None  # [out], DoRA only


class Adapter:
    """An opened adapter: which tensors it changes and how."""

    def __init__(self, deltas: dict[str, _Delta]) -> None:
        """Take low-rank deltas by our tensor names; use `open_adapter` to read a folder."""
        self._deltas = deltas

    def __contains__(self, name: str) -> bool:
        """Tell whether the adapter changes the tensor of this name."""
        return name in self._deltas

    def __len__(self) -> int:
        """Return how many tensors the adapter changes."""
        return len(self._deltas)

    def merge(self, name: str, base: np.ndarray, rows: slice | None = None) -> np.ndarray:
        """Return the merged rows.

        Args:
            name: our name of the tensor.
            base: [rows, in] of the base weight, any float dtype.
            rows: which rows of the tensor `base` holds; all if None.

        Returns:
            [rows, in] float32.
        """
        delta = self._deltas[name]
        rows = slice(None) if rows is None else rows
        merged = base.astype(np.float32)
        merged += np.float32(delta.scale) * (delta.up[rows] @ delta.down)
        if delta.magnitude is not None:
            norm = np.linalg.norm(merged, axis=1, keepdims=True)
            merged *= delta.magnitude[rows, None] / norm
        return merged


def open_adapter(folder: Path, targets: dict[str, tuple[int, ...]]) -> Adapter:
    """Read a PEFT adapter folder.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        targets: shapes of the tensors that may be adapted, by our names.

    Raises:
        CheckpointError: an option cannot be merged, or a tensor is missing, unknown, of a wrong
            shape or not finite.
    """
    config = read_json(folder / "adapter_config.json")
    _refuse_unmergeable(config, folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        found = sorted(p.name for p in folder.glob("adapter_model.*"))
        raise CheckpointError(
            f"{weights} does not exist (found {found})",
            "save the adapter with safe_serialization=True; .bin files are never unpickled",
        )
    linears = _linears(open_tensors(weights), targets, weights)
    deltas = {
        name: _delta(name, linear, targets[name], (config, weights))
        for name, linear in linears.items()
    }
    if not deltas:
        raise CheckpointError(f"{weights} holds no LoRA tensors", "save the trained adapter again")
    return Adapter(deltas)


def _refuse_unmergeable(config: dict[str, Any], folder: Path) -> None:
    for option, accepted in _MERGEABLE.items():
        if config.get(option, accepted[0]) not in accepted:
            raise CheckpointError(
                f"{folder / 'adapter_config.json'}: {option} is {config[option]!r}, which cannot "
                f"be merged (expected one of {list(accepted)})",
                "merge it with peft's own merge_and_unload and use the result as the base",
            )


def _linears(
    entries: dict[str, TensorEntry], targets: dict[str, tuple[int, ...]], path: Path
) -> dict[str, _Linear]:
    linears: dict[str, _Linear] = {}
    for key, entry in entries.items():
        match = _KEY.fullmatch(key)
        name = our_name(match["module"] + ".weight") if match else None
        if match is None or name not in targets or len(targets[name]) != 2:  # noqa: PLR2004
            raise CheckpointError(
                f"{path}: {key} is not a LoRA tensor of a linear of this backbone",
                "use an adapter trained on this base, with LoRA on linears only",
            )
        linear = linears.setdefault(name, _Linear(match["module"], {}))
        first = linear.parts.setdefault(match["part"], entry)
        if first is not entry:
            raise CheckpointError(
                f"{path}: {first.name} and {key} are of one linear: which one is the adapter's is "
                "not known",
                "save the trained adapter again",
            )
    return linears


def _delta(
    name: str,
    linear: _Linear,
    shape: tuple[int, ...],
    source: tuple[dict[str, Any], Path],
) -> _Delta:
    config, path = source
    use_dora = bool(config.get("use_dora"))
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if use_dora else set())
    if set(linear.parts) != expected:
        raise CheckpointError(
            f"{path}: {name} has {sorted(linear.parts)}, expected {sorted(expected)}",
            "save the trained adapter again",
        )
    rank, alpha = _rank_and_alpha(config, linear.module, path.parent)
    want = {"lora_A": (rank, shape[1]), "lora_B": (shape[0], rank)}
    arrays = {
        part: _read(entry, want.get(part, (shape[0],)), path)
        for part, entry in linear.parts.items()
    }
    return _Delta(
        down=arrays["lora_A"],
        up=arrays["lora_B"],
        scale=alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank,
        magnitude=arrays.get("lora_magnitude_vector"),
    )


def _rank_and_alpha(config: dict[str, Any], module: str, folder: Path) -> tuple[int, float]:
    try:
        rank = _patterned(config, "r", "rank_pattern", module)
        alpha = _patterned(config, "lora_alpha", "alpha_pattern", module)
        if what_fits(rank, 1, low=1) or not math.isfinite(alpha):
            raise ValueError(f"r {rank!r:.80}, alpha {alpha!r:.80}")  # noqa: TRY301 - one error
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: rank and alpha of {module} cannot be read: "
            f"{error!r}",
            "use the adapter_config.json saved beside the adapter, as peft wrote it",
        ) from error
    return rank, alpha


def _patterned(config: dict[str, Any], option: str, patterns: str, module: str) -> Any:  # noqa: ANN401
    """Return an option's value for a module: the first pattern's that fits, else the config's.

    Source: peft `utils/other.py: get_pattern_key`. A pattern is a regular expression of the end of
    the module's whole name (`model.layers.0...` under a language head), or with ^ of all of it.
    """
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config[option]


def _read(entry: TensorEntry, shape: tuple[int, ...], path: Path) -> np.ndarray:
    if tuple(entry.shape) != shape:
        raise CheckpointError(
            f"{path}: {entry.name} has shape {list(entry.shape)}, expected {list(shape)}",
            "use an adapter trained on this base, with the adapter_config.json saved beside it",
        )
    array = entry.read().astype(np.float32)
    if find_nonfinite(array) is not None:
        raise CheckpointError(
            f"{path}: {entry.name} holds NaN or infinite values",
            "its training diverged: use an earlier adapter",
        )
    return array
