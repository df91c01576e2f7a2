"""This file owns the proof that a machine without a GPU compiles an engine of NV-Embed's size.

It writes the graph that an export of NV-Embed's full width has, and a file of noise in the place of
its weights, which decide nothing here, and compiles it with TensorRT for RTX while it watches the
machine's memory. 32 layers are NV-Embed whole: in fp8 7 GiB of graph and as much of plan.
Run: python -m benchmarks.engine_full_size --layers 4 --precision fp8 --target sm89
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.lean_export import of_layers
from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.engine_record import Profile
from nvembed_deploy.export.builder import WeightData
from nvembed_deploy.export.engine import BuiltEngine, build_engine
from nvembed_deploy.export.engine_options import EngineOptions, engine_options
from nvembed_deploy.export.engine_profiles import default_profiles
from nvembed_deploy.export.graph import INPUTS, author_graph
from nvembed_deploy.export.memory import available_bytes
from nvembed_deploy.export.plan import facts_of, graph_options
from nvembed_deploy.export.recipe import PRECISIONS, ExportRecipe, load_recipe
from nvembed_deploy.spec import ModelSpec

GIB = 1 << 30
_WATCH_SECONDS = 0.1
_ALIGNED = 64
_NOISE_BYTES = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Write, export, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--fp8-rank", type=int, help="directions rounded twice")
    parser.add_argument("--workdir", type=Path, help="a folder on the disk to use")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args(argv)
    options, mistake = engine_options({"flavour": "tensorrt-rtx", "targets": args.target})
    if options is None:
        parser.error(str(mistake))
    recipe = load_recipe(None, {"precision": args.precision, "fp8_rank": args.fp8_rank})
    result = measure(of_layers(ModelSpec(), args.layers), recipe, options, args.workdir)
    print(json.dumps(result, indent=2))  # noqa: T201
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(
    spec: ModelSpec, recipe: ExportRecipe, options: EngineOptions, workdir: Path | None
) -> dict[str, object]:
    """Compile the graph that a recipe gives of a model, and return what it took."""
    profiles = default_profiles(spec.text.max_tokens, facts_of(recipe, spec).shortest)
    with tempfile.TemporaryDirectory(prefix="engine-", dir=workdir) as name:
        folder = Path(name)
        weights = write_noise(folder, spec, recipe)
        seconds, taken, built = _compile(folder, options, profiles)
        plan = (folder / built.name).stat().st_size
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "tensorrt_rtx": built.record.version,
        "layers": spec.backbone.num_layers,
        "precision": recipe.label,
        "fp8_rank": recipe.rank,
        "targets": list(built.record.targets),
        "profiles": len(profiles),
        "weights_gib": round(weights / GIB, 3),
        "plan_gib": round(plan / GIB, 3),
        "seconds": round(seconds, 1),
        "child_peak_gib": round(built.peak_bytes / GIB, 2),
        "memory_taken_gib": round(taken / GIB, 2),
        "memory_taken_over_weights": round(taken / weights, 2),
        "facts": dataclasses.asdict(built.record.facts),
    }


def write_noise(folder: Path, spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Write the graph and a file of noise that it takes for its weights; return the file's size.

    Its bytes are small positive numbers in every format, as scales have to be, and each weight has
    its own: TensorRT keeps equal ones once.
    """
    block, path = author_graph(spec, graph_options(recipe)), folder / LAYOUT.weights
    rng, offsets = np.random.default_rng(0), dict[str, int]()
    with path.open("wb") as file:
        for entry in block.weights:
            offsets[entry.name] = file.seek(-file.tell() % _ALIGNED, os.SEEK_CUR)
            noise = rng.integers(1, 40, _NOISE_BYTES, dtype=np.uint8).tobytes()
            for start in range(0, entry.num_bytes, len(noise)):
                file.write(noise[: entry.num_bytes - start])
    data = WeightData(path, offsets)
    ir.save(
        block.builder.model(block.inputs, block.output, block.opset, data), folder / LAYOUT.graph
    )
    return path.stat().st_size


def _compile(
    folder: Path, options: EngineOptions, profiles: tuple[Profile, ...]
) -> tuple[float, int, BuiltEngine]:
    """Return the seconds and the machine's memory that a build took, and what it built."""
    before = available_bytes()
    with _lowest_available() as lowest:
        started = time.monotonic()
        built = build_engine(folder, INPUTS, options, profiles)
        seconds = time.monotonic() - started
    return seconds, before - min(lowest), built


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
