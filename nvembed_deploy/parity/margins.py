"""This file owns the margins: how much worse an engine may be and still be the model.

docs/numerics.md gives the reasons. A difference of a main score is absolute (0.005 is half a
point of 100); cosines are between both sides' embeddings of the same text.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvembed_deploy.manifest import Manifest


@dataclass(frozen=True)
class Margins:
    """What a precision is held to."""

    score: float
    """The most that a main score may be lower, at 95 % confidence."""
    mean_cosine: float
    min_cosine: float | None
    """None where single texts may stray as long as the tasks hold."""
    median_abs: float | None = None
    """Most that the median text's numbers may move, for formats that should not round."""


MARGINS = {
    "fp32": Margins(score=5e-4, mean_cosine=0.9999, min_cosine=0.999, median_abs=2e-6),
    "fp16": Margins(score=5e-4, mean_cosine=0.999, min_cosine=0.99),
    "bf16": Margins(score=5e-4, mean_cosine=0.999, min_cosine=0.99),
    "fp8": Margins(score=2e-3, mean_cosine=0.995, min_cosine=None),
    "int8": Margins(score=5e-3, mean_cosine=0.99, min_cosine=None),
    "int4": Margins(score=5e-3, mean_cosine=0.99, min_cosine=None),
}


def precision_of(manifest: Manifest | None) -> str:
    """Return the row of `MARGINS` for an artifact; without one (a checkpoint in torch) fp32."""
    if manifest is None:
        return "fp32"
    label = str(manifest.recipe.get("precision", manifest.precision.value))
    if label.startswith("int"):
        return label.partition("-")[0]
    return label if label in MARGINS else manifest.precision.value
