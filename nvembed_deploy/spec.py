"""This file owns the description of a model: sizes, text rules and precisions, as plain data.

It does no I/O and imports nothing but the standard library, so that every layer may use it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum, StrEnum
from string import Formatter
from typing import Any, TypeVar

MIN_TOKENS = 3
"""Of a text: BOS, one token, EOS."""
_TOO_LARGE = 2**31
"""No size and no token id reaches it: tokenizers and numpy's shapes end soon after."""

_MOST_LAYERS = 1000
"""The deepest decoders have some hundred; of each layer nine tensors are looked for, one by one."""


class Precision(StrEnum):
    """Number format of an exported graph: its weights and its arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class PoolerForm(StrEnum):
    """How the latent pooler is written into a graph: as trained, or with its constants folded."""

    FAITHFUL = "faithful"
    FOLDED = "folded"


class Pooling(StrEnum):
    """How token states become one vector: the paper's four (arXiv 2405.17428, section 3.1)."""

    LATENT = "latent"
    MEAN = "mean"
    EOS = "eos"
    SELF_ATTENTION = "self-attention"

    @property
    def has_weights(self) -> bool:
        """Whether there is a pooler to train and to store."""
        return self in {Pooling.LATENT, Pooling.SELF_ATTENTION}


class Truncation(StrEnum):
    """What an over-long text loses: its last words (EOS stays), or its end as NV-Embed's code."""

    KEEP_EOS = "keep_eos"
    REFERENCE = "reference"


@dataclass(frozen=True)
class BackboneSpec:
    """Sizes of a Mistral/Llama-family decoder used as a bidirectional encoder.

    Defaults are NV-Embed-v2's (Mistral-7B-v0.1). `sliding_window` does not exist here: NV-Embed
    attends to every token.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    head_width: int = 128
    intermediate_size: int = 14336
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_positions: int = 32768
    causal: bool = False
    """Tokens see only what is left of them: the decoder as it came, for ablations."""


@dataclass(frozen=True)
class PoolerSpec:
    """Sizes of the latent-attention pooler.

    Defaults are NV-Embed's (arXiv 2405.17428, section 3.1).
    `head_width` is the width of each cross-attention head (4096, not hidden/heads), `feed_width`
    the width of the GEGLU's gated half (16384; its first linear makes twice as many).
    """

    pooling: Pooling = Pooling.LATENT
    num_latents: int = 512
    num_heads: int = 8
    head_width: int = 4096
    feed_width: int = 16384
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class TextSpec:
    """How a text becomes token ids (see `text.py`). Defaults are NV-Embed's."""

    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 2
    instruction_template: str = "Instruct: {instruction}\nQuery: "
    max_tokens: int = 4096
    truncation: Truncation = Truncation.KEEP_EOS


@dataclass(frozen=True)
class ModelSpec:
    """Everything that shapes an NV-Embed model and its input."""

    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    pooler: PoolerSpec = field(default_factory=PoolerSpec)
    text: TextSpec = field(default_factory=TextSpec)
    name: str = "nv-embed"
    prompts: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Build a spec from `to_dict`'s data.

        Raises:
            ValueError: a key is missing or unknown, or a value cannot stand under it.
        """
        _check_keys(cls, data, "spec")
        parts = {key: _part(kind, data[key], f"spec.{key}") for key, kind in _PARTS.items()}
        name, prompts = data["name"], data["prompts"]
        if not isinstance(name, str):
            raise ValueError(f"spec.name is {name!r:.80}, expected a text")  # noqa: TRY004 - JSON
        if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
            raise ValueError(f"spec.prompts is {prompts!r:.80}, expected an object of texts")
        fault = backbone_fault(parts["backbone"]) or template_fault(parts["text"])
        if fault:
            raise ValueError(f"spec: {fault}")
        return cls(**parts, name=name, prompts=prompts)


_Part = TypeVar("_Part", BackboneSpec, PoolerSpec, TextSpec)
_PARTS: dict[str, type] = {"backbone": BackboneSpec, "pooler": PoolerSpec, "text": TextSpec}
_LATER = {"causal"}
"""Keys that specs of schema 1 have not always had."""


def what_fits(value: Any, default: Any, low: int) -> str | None:  # noqa: ANN401 - JSON
    """Return None if a JSON value can stand for a default, else what would.

    Args:
        value: what was read.
        default: a value of the kind that is wanted.
        low: the least of a whole number.
    """
    kind = type(default)
    if isinstance(default, Enum):
        choices = [member.value for member in kind]
        fits, expected = value in choices, f"one of {choices}"
    elif kind is float:
        fits = type(value) in (int, float) and 0 < value <= sys.float_info.max
        expected = "a positive number"
    elif kind is int:
        is_enough = type(value) is int and value >= low
        fits = is_enough and value < _TOO_LARGE
        expected = f"a whole number {f'below {_TOO_LARGE}' if is_enough else f'of at least {low}'}"
    else:
        fits = kind in _WORDS and type(value) is kind
        expected = _WORDS.get(kind, "no such key")
    return None if fits else expected


_WORDS: dict[type, str] = {str: "a text", bool: "true or false"}


def with_values(part: _Part, values: Mapping[str, Any]) -> _Part:
    """Return a part of a spec with other values under some keys, each of its default's kind.

    Raises:
        ValueError: there is no such key, or a value cannot stand under it.
    """
    clean: dict[str, Any] = {}
    for key, value in values.items():
        default: Any = getattr(part, key, None)
        expected = what_fits(value, default, _least(key))
        if expected is not None:
            raise ValueError(f"{key} is {value!r:.80}, expected {expected}")
        clean[key] = type(default)(value)
    return replace(part, **clean)


def _least(key: str) -> int:
    return 0 if key.endswith("_id") else MIN_TOKENS if key == "max_tokens" else 1


def backbone_fault(spec: BackboneSpec) -> str | None:
    """Say which sizes of a decoder cannot be built; None where all can."""
    try:
        with_values(BackboneSpec(), asdict(spec))
    except ValueError as error:
        return str(error)
    if spec.num_layers > _MOST_LAYERS:
        return f"num_layers is {spec.num_layers}, expected at most {_MOST_LAYERS}"
    if spec.num_heads % spec.num_kv_heads or spec.head_width % 2:
        return (
            f"got {spec.num_heads} query heads of width {spec.head_width} and "
            f"{spec.num_kv_heads} key heads, expected a multiple of them and an even width"
        )
    return None


def template_fault(spec: TextSpec) -> str | None:
    """Say what is wrong with the template of instructions; None where nothing is.

    Its places are read, not filled: a width in one asks for as much memory as it says.
    """
    template = spec.instruction_template
    try:
        places = {part[1:] for part in Formatter().parse(template) if part[1] is not None}
    except ValueError as error:
        problem = str(error)
    else:
        if places == {("instruction", "", None)}:
            return None
        problem = "it has another place than {instruction}" if places else "it has no {instruction}"
    return f"text.instruction_template is {template!r:.200}: {problem}"


def _check_keys(kind: type, data: Any, where: str) -> None:  # noqa: ANN401 - JSON
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r:.80}, expected an object")  # noqa: TRY004 - JSON
    names = {f.name for f in fields(kind)}
    missing, unknown = sorted(names - data.keys() - _LATER), sorted(data.keys() - names)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}")


def _part(kind: Any, data: Any, where: str) -> Any:  # noqa: ANN401 - any dataclass
    _check_keys(kind, data, where)
    try:
        return with_values(kind(), data)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
