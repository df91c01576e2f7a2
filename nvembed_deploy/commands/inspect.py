"""This file owns `nvembed-deploy inspect`: an artifact, readable; its files, verified."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli
from nvembed_deploy.errors import ArtifactError

if TYPE_CHECKING:
    from nvembed_deploy.artifact import Artifact, Manifest
    from nvembed_deploy.tensorfile import TensorEntry


_CHECKPOINT_FILES = ("checkpoint.json", "config.json")
_PIPE_WIDTH = 240
"""Columns where no terminal says how many: wide enough that no line is wrapped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Show what an artifact is, and verify its files."
    parser.add_argument("artifact", type=Path, help="artifact folder")
    parser.add_argument("--full", action="store_true", help="also hash the weights and engines")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    cli.add_traceback(parser)
    parser.set_defaults(command=inspect)


def inspect(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.artifact import is_artifact, open_artifact, read_manifest, remedy

    path = args.artifact
    if not is_artifact(path) and any((path / name).is_file() for name in _CHECKPOINT_FILES):
        raise ArtifactError(
            f"{path} is a checkpoint, expected an artifact",
            f"nvembed-deploy export {quote(str(path))} OUT",
        )
    artifact = open_artifact(args.artifact, "full" if args.full else "fast")
    listed = read_manifest(path)
    lost = sorted(listed.engines.keys() - artifact.manifest.engines.keys())
    if lost:
        raise ArtifactError(
            f"{path}: {', '.join(lost)} is gone, cut short or outside the artifact",
            "; ".join(remedy(path, name, listed) for name in lost),
        )
    if args.json:
        cli.say(json.dumps(artifact.manifest.to_dict(), indent=2))
        return
    _show(artifact)
    partly = "every size, every hash but those of weights and engines (--full)"
    cli.say(f"verified: {'every hash' if args.full else partly}")


def _show(artifact: Artifact) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(artifact.manifest).items():
        facts.add_row(key, value, style="")
    blocks, files = (
        Table(*heads, box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for heads in (
            ("block", "linears", "precision", "size", "each layer"),
            ("file", "size", "sha256"),
        )
    )
    for row in _blocks(artifact):
        blocks.add_row(*row)
    for name, record in sorted(artifact.manifest.files.items()):
        files.add_row(name, cli.human_bytes(record.bytes), record.sha256[:16])
    title = Text(str(artifact.path), style="bold", overflow="fold")
    # Plain strings: a name may hold what rich takes for markup.
    with cli.console(_PIPE_WIDTH, markup=False, highlight=False) as console:
        for part in (title, facts, "", blocks, "", files, ""):
            console.print(part)


def _blocks(artifact: Artifact) -> Iterator[tuple[str, ...]]:
    """Yield a row for each block: its linears, precisions and bytes; equal layers are one row.

    Such a row holds the sums of all its layers, and what one of them has in the last column.
    """
    from nvembed_deploy.tensorfile import open_tensors

    blocks: dict[str, list[TensorEntry]] = {}
    for name, entry in open_tensors(artifact.weights).items():
        layer = re.match(r"backbone\.layers\.(\d+)", name)
        block = f"layer {layer[1]}" if layer else name.split(".")[0 if "pooler" in name else 1]
        blocks.setdefault(block, []).append(entry)
    rows = [(name, _block_facts(entries)) for name, entries in blocks.items()]
    for (facts, _), group in groupby(rows, key=lambda row: (row[1], row[0].split()[0])):
        names = [name for name, _ in group]
        first, last = names[0].split()[-1], names[-1].split()[-1]
        linears, kinds, num_bytes = facts
        each = f"{linears} linears, {cli.human_bytes(num_bytes)}" if len(names) > 1 else ""
        yield (
            names[0] if len(names) == 1 else f"layers {first}-{last}",
            str(linears * len(names)),
            kinds,
            cli.human_bytes(num_bytes * len(names)),
            each,
        )


def _block_facts(entries: list[TensorEntry]) -> tuple[int, str, int]:
    linears = sum(entry.name.endswith(".weight_t") for entry in entries)
    kinds = Counter(entry.dtype.lower() for entry in entries)
    return linears, ", ".join(sorted(kinds)), sum(entry.nbytes for entry in entries)


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
        **{f"engine {i}": r.summary for i, r in enumerate(manifest.engines.values(), 1)},
        "self-check": _check(manifest.check),
        "parity": _parity(manifest.parity),
        "made": f"{manifest.created} with "
        + ", ".join(f"{k} {v}" for k, v in manifest.tools.items()),
    }


def _check(check: dict[str, Any] | None) -> str:
    if check is None:
        return "did not run"
    try:
        verdict = "passed" if check["passed"] else "FAILED"
        return (
            f"{verdict} ({check['method']}; {check['arithmetic']}): cosine mean "
            f"{check['mean_cosine']:.7f}, min {check['min_cosine']:.7f}, largest difference "
            f"{check['max_abs']:.1e}, {check['num_texts']} texts"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the manifest's self-check cannot be read: {error!r}", "export the checkpoint again"
        ) from error


def _parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return "not measured"
    return "passed" if parity["passed"] else "FAILED"
