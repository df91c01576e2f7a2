"""This file owns the published scores of NV-Embed-v1 and v2, to hold a full run of them against.

`card` is what the model cards and the paper report, `mteb` what mteb's own reruns found where they
are on record: for classification those are 2 to 29 points below the cards (mteb issue 1600).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_DATA = Path(__file__).with_name("published.json")
_PERCENT = 100
MODELS = ("NV-Embed-v1", "NV-Embed-v2")


@dataclass(frozen=True)
class Published:
    """A task's published scores, in percent."""

    card: float | None = None
    mteb: float | None = None


def published_scores(model: str) -> dict[str, Published]:
    """Return a model's published scores by mteb's task names."""
    rows = json.loads(_DATA.read_text(encoding="utf-8"))[model]
    return {task: Published(**scores) for task, scores in rows.items()}


def compare(scores: dict[str, float], model: str) -> list[str]:
    """Return a line for each task that was measured and published; `scores` are of 0 to 1."""
    known = published_scores(model)
    lines = []
    for task, score in scores.items():
        found = known.get(task)
        if found is None:
            continue
        parts = [
            f"{name} {value:.2f} ({_PERCENT * score - value:+.2f})"
            for name, value in (("card", found.card), ("mteb's rerun", found.mteb))
            if value is not None
        ]
        lines.append(f"{task:<32} {_PERCENT * score:6.2f}  {', '.join(parts)}")
    return lines or [f"none of the tasks measured has a published score of {model}"]
