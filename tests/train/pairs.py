"""Shared by the training tests: a few pairs, recipes of the tiny model, runs in other processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from nvembed_deploy.train.recipe import TrainRecipe

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "another",
    "text",
    "of",
    "many",
    "words",
]
COMMAND = (sys.executable, "-m", "nvembed_deploy.train")
ON_PROCESSOR = {"ACCELERATE_USE_CPU": "true"}
"""Two processes cannot share one GPU (NCCL), nor are its sums the same to the bit each time."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ON_PROCESSOR}


def pair(number: int, **changes: object) -> dict[str, Any]:
    """Return an example that no other number gives."""
    words = [*WORDS[number % 7 :], str(number)]
    return {
        "task_type": ("retrieval", "sts")[number % 2],
        "instruction": "find the text" if number % 3 else "",
        "query": " ".join(words[: 3 + number % 5]) + f" {number}",
        "positive": " ".join(words[::-1]),
        "negatives": [f"no {number} {i} {words[i]}" for i in range(number % 3)],
        **changes,
    }


def write_pairs(path: Path, count: int = 24) -> Path:
    """Write examples as JSONL."""
    path.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(count)))
    return path


def values(base: Path, data: Path, out: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return a tiny recipe's values; `changes` are merged into its sections."""
    recipe: dict[str, Any] = {
        "model": {
            "base": str(base),
            "num_latents": 6,
            "num_heads": 2,
            "head_width": 16,
            "feed_width": 32,
        },
        "adapter": {"rank": 2, "alpha": 4},
        "data": [{"path": str(data)}],
        "text": {"max_tokens": 32},
        "loss": {"temperature": 0.05, "hard_negatives": 2},
        "batch": {"queries": 4},
        "optimizer": {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 1},
        "run": {"out": str(out), "precision": "fp32", "save_every": 2, "log_every": 2},
    }
    for section, change in changes.items():
        recipe[section] = {**recipe[section], **change}
    return recipe


def recipe(base: Path, data: Path, out: Path, **changes: dict[str, Any]) -> TrainRecipe:
    """Return a tiny recipe."""
    return TrainRecipe.model_validate(values(base, data, out, **changes))


def write_toml(path: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe's values as TOML (JSON's literals are TOML's)."""
    lines = []
    for section, content in recipe.items():
        for part in content if isinstance(content, list) else [content]:
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in part.items()]
    path.write_text("\n".join(lines) + "\n")
    return path
