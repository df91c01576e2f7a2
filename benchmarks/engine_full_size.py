"""This file owns the proof that a machine without a GPU compiles an engine of NV-Embed's size.

It writes a random checkpoint of NV-Embed's full width, or takes an artifact, and compiles it with
TensorRT for RTX while it watches the machine's memory. 32 layers are NV-Embed whole: 16 GB of
checkpoint, and in fp8 8 GB of graph and as much of plan.
Run: python -m benchmarks.engine_full_size --layers 4 --precision fp8 --target sm89
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.lean_export import write_random_checkpoint
from nvembed_deploy.artifact import LAYOUT, open_artifact
from nvembed_deploy.export.engine import build_engine
from nvembed_deploy.export.engine_add import graph_facts
from nvembed_deploy.export.engine_options import EngineOptions, engine_options
from nvembed_deploy.export.engine_profiles import default_profiles
from nvembed_deploy.export.graph import INPUTS
from nvembed_deploy.export.memory import available_bytes
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import PRECISIONS, load_recipe
from nvembed_deploy.spec import ModelSpec

GIB = 1 << 30
_NUMBER_FORMATS = ("fp32", "fp16", "bf16")
_WATCH_SECONDS = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Write, export, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--artifact", type=Path, help="compile this one, and keep its folder")
    parser.add_argument("--workdir", type=Path, help="a folder on the disk to use")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args(argv)
    options, mistake = engine_options({"flavour": "tensorrt-rtx", "targets": args.target})
    if options is None:
        parser.error(str(mistake))
    workdir = Path(tempfile.mkdtemp(prefix="engine-", dir=args.workdir))
    try:
        artifact = args.artifact or _export(workdir, args.layers, args.precision)
        result = _measure(artifact, workdir / "engine", options)
    finally:
        shutil.rmtree(workdir)
    print(json.dumps(result, indent=2))  # noqa: T201
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _export(workdir: Path, layers: int, precision: str) -> Path:
    base = ModelSpec()
    spec = dataclasses.replace(base, backbone=dataclasses.replace(base.backbone, num_layers=layers))
    checkpoint, out = workdir / "checkpoint", workdir / "artifact"
    write_random_checkpoint(checkpoint, spec)
    # Random weights: rounding them well would cost hours, and change no number here.
    rounding = {} if precision in _NUMBER_FORMATS else {"rounding": "nearest"}
    recipe = load_recipe(None, {"precision": precision, **rounding})
    run_export(plan_export(checkpoint, recipe), out)
    shutil.rmtree(checkpoint)
    return out


def _measure(artifact: Path, folder: Path, options: EngineOptions) -> dict[str, object]:
    manifest = open_artifact(artifact).manifest
    folder.mkdir()
    for name in (LAYOUT.graph, LAYOUT.weights):
        (folder / name).symlink_to((artifact / name).resolve())
    profiles = default_profiles(manifest.spec.text.max_tokens, graph_facts(manifest).shortest)
    before = available_bytes()
    with _lowest_available() as lowest:
        started = time.monotonic()
        built = build_engine(folder, INPUTS, options, profiles)
        seconds = time.monotonic() - started
    weights = manifest.weights.bytes
    taken = before - min(lowest)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "tensorrt_rtx": built.record.version,
        "layers": manifest.spec.backbone.num_layers,
        "precision": manifest.recipe["precision"],
        "targets": list(built.record.targets),
        "profiles": len(profiles),
        "weights_gib": round(weights / GIB, 3),
        "plan_gib": round((folder / built.name).stat().st_size / GIB, 3),
        "seconds": round(seconds, 1),
        "child_peak_gib": round(built.peak_bytes / GIB, 2),
        "memory_taken_gib": round(taken / GIB, 2),
        "memory_taken_over_weights": round(taken / weights, 2),
        "lowest_available_gib": round(min(lowest) / GIB, 2),
        "facts": dataclasses.asdict(built.record.facts),
    }


@contextmanager
def _lowest_available() -> Iterator[list[int]]:
    """Yield a list to which the machine's free memory is added, until the block ends."""
    seen, done = [available_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            seen.append(available_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
