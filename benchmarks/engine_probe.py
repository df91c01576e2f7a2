"""This file owns whether TensorRT works on this machine at all, asked in seconds.

It builds an engine of one tiny layer, as those of full size are built, and loads it on the GPU.
Run: python -m benchmarks.engine_probe --engine tensorrt
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.engine_full_size import write_noise
from nvembed_deploy import cli
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import HardwareError, RecipeError
from nvembed_deploy.export.engine import build_engine
from nvembed_deploy.export.engine_options import check_engine, engine_options
from nvembed_deploy.export.engine_profiles import default_profiles
from nvembed_deploy.export.graph import INPUTS
from nvembed_deploy.export.plan import facts_of
from nvembed_deploy.export.recipe import load_recipe
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, TextSpec
from nvembed_deploy.tensorrt_api import load_api

_TINY = ModelSpec(
    backbone=BackboneSpec(320, 256, 1, 4, 2, 64, 512),
    pooler=PoolerSpec(num_latents=16, num_heads=4, head_width=64, feed_width=256),
    text=TextSpec(bos_id=1, eos_id=2, pad_id=2),
)


def probe(args: argparse.Namespace) -> None:
    """Build, and load unless told otherwise.

    Raises:
        HardwareError: TensorRT builds, but cannot load here what it built.
    """
    table = {"flavour": args.engine} | ({"targets": args.target} if args.target else {})
    options, mistake = engine_options(table)
    if options is None:
        raise RecipeError(str(mistake), "see python -m benchmarks.engine_probe --help")
    recipe = load_recipe(None, {"precision": "fp16"})
    facts = facts_of(recipe, _TINY)
    check_engine(options, facts)
    profiles = default_profiles(_TINY.text.max_tokens, facts.shortest)[:1]
    log: list[str] = []
    with tempfile.TemporaryDirectory(prefix="probe-") as name:
        write_noise(Path(name), _TINY, recipe)
        built = build_engine(Path(name), INPUTS, options, profiles)
        version, api = built.record.version, load_api(options.flavour)
        if not args.build_only:
            try:
                api.layer_names(Path(name) / built.name, api.logger(lambda *line: log.extend(line)))
            except (RuntimeError, ValueError) as error:
                raise HardwareError(
                    f"{options.flavour} {version} builds an engine, but cannot load it: {error}"
                    f" {' '.join(log)}",
                    "see what nvidia-smi says of the driver: CUDA 13 needs 580 or newer",
                ) from error
    cli.say(f"{options.flavour} {version} works here: built in {built.record.seconds} s")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=[f.value for f in Flavour], required=True)
    parser.add_argument("--target", help="GPUs of a tensorrt-rtx engine")
    parser.add_argument("--build-only", action="store_true", help="where there is no GPU")
    return cli.run(probe, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
