"""This file owns what `--dry-run` tells: what an export would write and take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli
from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.export.estimate import estimate, folder_bytes
from nvembed_deploy.export.recipe import ExportRecipe

if TYPE_CHECKING:
    from nvembed_deploy.export.plan import Export

_FILES = (
    LAYOUT.manifest,
    LAYOUT.graph,
    LAYOUT.weights,
    LAYOUT.tokenizer,
    LAYOUT.config,
    "tokenizer_config.json",
)
_LONG_SECONDS = 10 * 60


def describe(planned: Export, out: Path) -> dict[str, Any]:
    """Return what an export would write, and what it would take, as plain JSON data."""
    spec, num_bytes = planned.checkpoint.spec, folder_bytes(planned)
    return {
        "checkpoint": str(planned.checkpoint.path),
        "out": str(out),
        "model": spec.name,
        "layers": spec.backbone.num_layers,
        "hidden_size": spec.backbone.hidden_size,
        "adapter": planned.checkpoint.adapter is not None,
        **planned.recipe.to_dict(),
        **({"cache": planned.recipe.cache} if planned.recipe.cache else {}),
        **({"engine": planned.recipe.engine.label} if planned.recipe.engine else {}),
        "files": _files(planned.recipe),
        "bytes": num_bytes,
        "num_nodes": len(planned.block.builder.nodes),
        **asdict(estimate(planned)),
    }


def _files(recipe: ExportRecipe) -> list[str]:
    calibration = [LAYOUT.calibration] if recipe.is_calibrated else []
    return [*_FILES, *calibration, *(["engines/*.plan"] if recipe.engine else [])]


def to_text(plan: dict[str, Any]) -> str:
    """Return it as people read it."""
    adapter = ", adapter merged" if plan["adapter"] else ""
    return (
        f"{plan['checkpoint']} ({plan['model']}: {plan['layers']} layers, hidden "
        f"{plan['hidden_size']}{adapter})\n"
        f"-> {plan['out']}: {plan['precision']}, opset {plan['opset']}, {plan['pooler']} pooler, "
        f"{plan['num_nodes']} nodes"
        + (f", {plan['engine']} engine" if "engine" in plan else "")
        + f"\nfiles {', '.join(plan['files'])}\n"
        f"disk {cli.human_bytes(plan['bytes'])}, peak memory about "
        f"{cli.human_bytes(plan['peak_ram_bytes'])}, about {_steps(plan)} on two cores"
        f"{_elsewhere(plan)}\n{_advice(plan)}"
        "nothing was written (--dry-run)"
    )


def _elsewhere(plan: dict[str, Any]) -> str:
    device = plan.get("device", "cpu")
    return (
        "" if device == "cpu" else f", and calibration on {device} (time and memory not measured)"
    )


def _advice(plan: dict[str, Any]) -> str:
    is_long = "calibration" in plan and plan["seconds"] >= _LONG_SECONDS
    if not is_long or "cache" in plan:
        return ""
    return "with --cache DIR an export that is killed goes on from the blocks it has rounded\n"


def _steps(plan: dict[str, Any]) -> str:
    steps = {"write": "seconds", "check": "self_check_seconds", "compile": "engine_seconds"}
    times = [(step, plan[key]) for step, key in steps.items() if plan[key] or step != "compile"]
    return ", ".join(f"{cli.human_seconds(seconds)} to {step}" for step, seconds in times)
