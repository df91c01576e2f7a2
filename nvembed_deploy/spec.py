"""This file owns the description of a model: sizes, text rules and precisions, as plain data.

It does no I/O and imports nothing but the standard library, so that every layer may use it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import Enum, StrEnum
from typing import Any

MIN_TOKENS = 3
"""Of a text: BOS, one token, EOS."""


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
            ValueError: a key is unknown or a value is not of its enumeration.
        """
        parts: dict[str, Any] = {"backbone": BackboneSpec, "pooler": PoolerSpec, "text": TextSpec}
        values = {
            key: _from_dict(parts[key], value) if key in parts else value
            for key, value in data.items()
        }
        spec: ModelSpec = _from_dict(cls, values)
        return spec


_ENUMS: dict[str, type[Enum]] = {"pooling": Pooling, "truncation": Truncation}


def _from_dict(cls: Any, data: dict[str, Any]) -> Any:  # noqa: ANN401 - any dataclass
    unknown = sorted(set(data) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"unknown keys {unknown} in {cls.__name__}")
    return cls(**{k: _ENUMS[k](v) if k in _ENUMS else v for k, v in data.items()})
