"""This file owns the training recipe: what a user may choose, read from TOML and checked at once.

Defaults are the paper's where it states them (arXiv 2405.17428, section 5.1 and table 5); it does
not state the temperature, the adapted linears, the clipping, nor a rate for the pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.spec import BackboneSpec, PoolerSpec, Pooling
from nvembed_deploy.tomlfile import read_toml, read_value
from nvembed_deploy.train.example import SYMMETRIC, TaskType
from nvembed_deploy.train.section import Count, Section, Whole, validated

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
_SHAPE = {"pooling", "mask", "num_latents", "num_heads", "head_width", "feed_width"}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _one_line(name: str) -> str:
    if not name.isprintable():
        raise ValueError(f"{name!r} is not one line of printable text")
    return name


def _linear(name: str) -> str:
    if name.rpartition(".")[2] not in LINEARS:
        raise ValueError(f"{name!r} is no linear of a decoder, expected {', '.join(LINEARS)}")
    return name


Linear = Annotated[str, AfterValidator(_linear)]


class ModelSection(Section):
    """What is trained: a decoder or a released model (`base`), or a stage before (`checkpoint`)."""

    base: Path | None = None
    checkpoint: Path | None = None
    name: Annotated[str, AfterValidator(_one_line)] | None = None
    pooling: Pooling = Pooling.LATENT
    mask: Literal["bidirectional", "causal"] = "bidirectional"
    num_latents: Count = 512
    num_heads: Count = 8
    head_width: Count | None = None
    """The base's hidden size if left out, as in NV-Embed."""
    feed_width: Count | None = None
    """Four times the base's hidden size if left out, as in NV-Embed."""

    @model_validator(mode="after")
    def _has_one_start(self) -> Self:
        if (self.base is None) == (self.checkpoint is None):
            raise ValueError("give either base (a decoder) or checkpoint (of an earlier stage)")
        if self.checkpoint is not None and self.shape_keys:
            raise ValueError(f"{', '.join(self.shape_keys)}: a checkpoint's shape is its own")
        return self

    @property
    def shape_keys(self) -> list[str]:
        """Return the keys that were given of those that shape a model."""
        return sorted(_SHAPE & self.model_fields_set)

    def pooler_spec(self, backbone: BackboneSpec) -> PoolerSpec:
        """Return the pooler's sizes beside a decoder."""
        return PoolerSpec(
            pooling=self.pooling,
            num_latents=self.num_latents,
            num_heads=self.num_heads,
            head_width=self.head_width or backbone.hidden_size,
            feed_width=self.feed_width or 4 * backbone.hidden_size,
        )


class AdapterSection(Section):
    """The LoRA adapter of the decoder (peft's names)."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Share = 0.1
    target_modules: Annotated[tuple[Linear, ...], Field(min_length=1)] = LINEARS
    """Names of linears, of all layers (`q_proj`) or one (`layers.0.self_attn.q_proj`)."""


class SourceSection(Section):
    """One place that examples come from, and how often it is drawn from."""

    path: Path
    weight: Positive = 1.0
    task_types: tuple[TaskType, ...] = ()
    """Take only these; all if empty."""


class TextSection(Section):
    """How examples become texts."""

    max_tokens: Annotated[Whole, Field(ge=3)] = 512
    instruct_passages: tuple[TaskType, ...] = SYMMETRIC
    """Task types whose two sides are alike: both carry the instruction."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What a line that is no example does: end the run at once, or be counted and left out."""


class LossSection(Section):
    """InfoNCE: a query against its positive and its negatives."""

    temperature: Positive = 0.02
    in_batch_negatives: bool = True
    """The other queries' passages are negatives too: stage 1 yes, stage 2 no (section 4.2)."""
    hard_negatives: Whole = 7

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if not self.in_batch_negatives and not self.hard_negatives:
            raise ValueError("no negatives: in_batch_negatives is false and hard_negatives is 0")
        return self


class BatchSection(Section):
    """What one step sees, and how much of it is computed at a time."""

    queries: Count = 128
    mix: Literal["blend", "one-source"] = "blend"
    chunk_tokens: Count = 16384
    """Tokens of one forward pass, padding included."""
    live_tokens: Whole = 16384
    """Tokens whose activations are kept; what is beyond is computed twice (GradCache)."""


class OptimizerSection(Section):
    """AdamW with warm-up and linear decay."""

    steps: Count
    learning_rate: Positive = 2e-5
    pooler_learning_rate: Positive | None = None
    """The same as the adapter's if left out."""
    warmup_steps: Whole = 500
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.03
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves none of {self.steps} steps")
        return self


class RunSection(Section):
    """Where a run lives, and what it writes."""

    out: Path
    seed: Annotated[Whole, Field(lt=1 << 32)] = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    shard: bool = False
    """Spread the weights over all processes (FSDP2), for a decoder too large for one GPU."""
    compile: bool = False
    """Compile the decoder's layers (torch.compile): a minute at the start, then twice the speed on
    a CPU; needs a C++ compiler there."""
    save_every: Count = 500
    keep: Count = 2
    """How many saved steps stay."""
    log_every: Count = 10
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    on_nan: Literal["stop", "skip"] = "stop"
    """What a loss or a gradient that is not finite does: end the run, or leave that step out (ten
    in a row end it all the same)."""


class TrainRecipe(Section):
    """All choices of one run."""

    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: Annotated[tuple[SourceSection, ...], Field(min_length=1)]
    text: TextSection = TextSection()
    loss: LossSection = LossSection()
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection
    run: RunSection

    @model_validator(mode="after")
    def _compares_something(self) -> Self:
        if self.batch.queries == 1 and not self.loss.hard_negatives:
            raise ValueError("no negatives: batch.queries is 1 and loss.hard_negatives is 0")
        return self

    @model_validator(mode="after")
    def _keeps_the_adapter(self) -> Self:
        if self.model.checkpoint is not None and self.adapter.model_fields_set - {"dropout"}:
            raise ValueError("adapter: a checkpoint's adapter is its own; only dropout may change")
        return self


def load_recipe(path: Path, overrides: Mapping[str, str] | None = None) -> TrainRecipe:
    """Read a TOML recipe, apply `section.key` overrides, and check all of it.

    Raises:
        RecipeError: the file cannot be read, or keys or values are wrong; all are listed.
    """
    values = read_toml(path, "recipe", see="train/")
    for key, text in (overrides or {}).items():
        section, dot, name = key.partition(".")
        if not dot or not isinstance(values.setdefault(section, {}), dict):
            raise RecipeError(
                f"--set {key}: no such key", "write --set section.key=value, as run.seed=1"
            )
        values[section][name] = read_value(text)
    return validated(TrainRecipe, values, f"recipe {path}")
