"""This file owns the data plan: a TOML file that names raw sets and how each becomes examples."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from nvembed_deploy.tomlfile import read_toml
from nvembed_deploy.train.data.overlap import THRESHOLD
from nvembed_deploy.train.section import Count, Section, Whole, validated

Scalar = str | int | float | bool


class Kind(StrEnum):
    """What the rows of a source are, and so how they become examples."""

    PAIRS = "pairs"
    """Query and positive, perhaps negatives: taken as they are."""
    STS = "sts"
    """Two sentences and a score: the similar ones in both directions."""
    LABEL_TEXTS = "label-texts"
    """Text and label; the label's text is the positive. NV-Embed's way for two classes."""
    CLASSIFICATION = "classification"
    """Text and label; another text of the class is the positive. NV-Embed-v2's way."""
    CLUSTERING = "clustering"
    """The same for clusters."""


_KEYS = {
    Kind.PAIRS: (),
    Kind.STS: ("sentence1", "sentence2", "score"),
    Kind.LABEL_TEXTS: ("text", "label"),
    Kind.CLASSIFICATION: ("text", "label"),
    Kind.CLUSTERING: ("text", "label"),
}


class SourcePlan(Section):
    """A raw set: JSONL files of one kind."""

    name: str
    path: Path
    kind: Kind
    instruction: str | None = None
    """Of the queries. Pairs may bring their own."""
    keys: dict[str, str] = Field(default_factory=dict)
    """Where rows name things otherwise: {text = "utterance", label = "intent"}."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Take only rows with these values, such as {split = "train"}."""
    limit: Count | None = None
    """Keep this many examples, drawn at random after near-duplicates are gone."""
    negatives: Whole = 7
    """At most this many negatives an example (the paper's 7)."""
    label_texts: dict[str, str] = Field(default_factory=dict)
    """What each label is called (label-texts); the label itself if left out."""
    min_score: float = 4.0
    """From this score on two sentences are a pair (sts; the paper's 4 of 5)."""
    max_negative_score: float = 2.5
    """Up to this score, or without one, a sentence may be a negative (sts; the paper's 2.5)."""
    top_score: Annotated[float, Field(gt=0)] = 5.0
    """The highest possible score; scores are scaled to 5 (sts)."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.instruction is None and self.kind is not Kind.PAIRS:
            raise ValueError("instruction is missing")
        strange = sorted(set(self.keys) - set(_KEYS[self.kind]))
        if strange:
            raise ValueError(
                f"keys names {strange}, expected {list(_KEYS[self.kind])} for {self.kind}"
            )
        if self.label_texts and self.kind is not Kind.LABEL_TEXTS:
            raise ValueError(f"label_texts belongs to label-texts, this is {self.kind}")
        return self

    def column(self, key: str) -> str:
        """Return what this source calls a key."""
        return self.keys.get(key, key)


class EvaluationPlan(Section):
    """Texts that training must not see: a JSONL file, or a folder of them."""

    path: Path
    where: dict[str, Scalar] = Field(default_factory=dict)


class DataPlan(Section):
    """Everything that decides what is built."""

    seed: int = 0
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = THRESHOLD
    """See `overlap.py`."""
    evaluation: tuple[EvaluationPlan, ...] = ()
    source: Annotated[tuple[SourcePlan, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_distinct_names(self) -> Self:
        names = [source.name for source in self.source]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}")
        return self


def load_plan(path: Path) -> DataPlan:
    """Read and check a plan. Relative paths in it start at the current folder.

    Raises:
        RecipeError: it cannot be read, or keys or values are wrong; all are listed.
    """
    values = read_toml(path, "plan", see="nvembed-deploy build-data --help")
    return validated(DataPlan, values, f"plan {path}")
