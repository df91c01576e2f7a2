"""This file owns `nvembed-deploy inspect`: an artifact, readable; its files, verified."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli

if TYPE_CHECKING:
    from nvembed_deploy.artifact import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Show what an artifact is, and verify its files."
    parser.add_argument("artifact", type=Path, help="artifact folder")
    parser.add_argument("--full", action="store_true", help="also hash the weights")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    cli.add_traceback(parser)
    parser.set_defaults(command=inspect)


def inspect(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.artifact import open_artifact

    artifact = open_artifact(args.artifact, "full" if args.full else "fast")
    if args.json:
        cli.say(json.dumps(artifact.manifest.to_dict(), indent=2))
        return
    _show(str(args.artifact), artifact.manifest, "all hashes" if args.full else "sizes and hashes")


def _show(path: str, manifest: Manifest, verified: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(manifest).items():
        facts.add_row(f"[bold]{key}[/]", value)
    console.print(f"[bold]{path}[/]")
    console.print(facts)
    files = Table("file", "size", "sha256", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name, record in sorted(manifest.files.items()):
        files.add_row(name, cli.human_bytes(record.bytes), record.sha256[:16])
    console.print(files)
    what = verified if verified == "all hashes" else f"{verified} (weights by size; --full hashes)"
    console.print(f"verified: {what}")


def _facts(manifest: Manifest) -> dict[str, str]:
    backbone, pooler, text = manifest.spec.backbone, manifest.spec.pooler, manifest.spec.text
    latent = (
        f"{pooler.num_latents} latents, {pooler.num_heads} heads, {manifest.pooler_form.value}"
        if pooler.pooling.value == "latent"
        else "mean"
    )
    return {
        "model": f"{manifest.spec.name}: {backbone.num_layers} layers, hidden "
        f"{backbone.hidden_size}, {backbone.num_heads}/{backbone.num_kv_heads} heads",
        "pooler": latent,
        "text": f"BOS {text.bos_id}, EOS {text.eos_id}, up to {text.max_tokens} tokens, "
        f"{text.instruction_template!r}",
        "prompts": ", ".join(manifest.spec.prompts) or "none",
        "precision": f"{manifest.precision.value}, opset {manifest.opset}; linears: "
        + ", ".join(f"{count} {name}" for name, count in manifest.linears.items()),
        "weights": f"{manifest.weights.num_parameters:,} parameters, "
        f"{cli.human_bytes(manifest.weights.bytes)}",
        "self-check": _check(manifest.check),
        "parity": _parity(manifest.parity),
        "made": f"{manifest.created} with "
        + ", ".join(f"{k} {v}" for k, v in manifest.tools.items()),
    }


def _check(check: dict[str, Any] | None) -> str:
    if check is None:
        return "did not run"
    verdict = "passed" if check["passed"] else "FAILED"
    return (
        f"{verdict} ({check['method']}; {check['arithmetic']}): cosine mean "
        f"{check['mean_cosine']:.7f}, min {check['min_cosine']:.7f}, largest difference "
        f"{check['max_abs']:.1e}, {check['num_texts']} texts"
    )


def _parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return "not measured"
    return "passed" if parity["passed"] else "FAILED"
