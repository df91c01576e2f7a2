"""This file owns the export command line: `python -m nvembed_deploy.export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvembed_deploy import cli
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import ArtifactError, MissingPackageError, RecipeError
from nvembed_deploy.export.dry_run import describe, to_text
from nvembed_deploy.export.formats import Rounding
from nvembed_deploy.export.recipe import OPSETS, PRECISIONS, RANK, ExportRecipe, load_recipe
from nvembed_deploy.spec import PoolerForm

_EXAMPLES = """examples:
  nvembed-deploy export ./NV-Embed-v2 ./nv-embed-v2-fp16
  nvembed-deploy export ./NV-Embed-v2 ./out --precision bf16 --opset 20
  nvembed-deploy export ./NV-Embed-v2 ./out --precision fp8 --engine tensorrt-rtx --target sm89
  nvembed-deploy export --recipe export/fp16.toml ./NV-Embed-v2 ./out --dry-run
"""
_CHECK_PACKAGES = ("torch", "transformers", "onnxruntime")
"""What the self-check imports."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Write a checkpoint as an artifact: an ONNX graph with its weights, tokenizer and "
        "manifest, checked against the checkpoint."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint folder to read")
    parser.add_argument("out", nargs="?", type=Path, help="artifact folder to write")
    parser.add_argument("--recipe", type=Path, help="TOML file with the options below")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format (default fp16); fp8 and int8: 8-bit linears, weights and inputs; "
        "*-weight: 8- or 4-bit weights only",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=OPSETS,
        help="23: fused operators (default); 20: elementary ones, for TensorRT before 10.15",
    )
    parser.add_argument(
        "--pooler",
        choices=[f.value for f in PoolerForm],
        help="folded: constants multiplied out, exact (default); faithful: as trained, for audits",
    )
    parser.add_argument(
        "--max-tokens",
        type=cli.positive,
        help="cut texts after so many tokens (default: the checkpoint's, 4096 of NV-Embed's)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="NAME=PREFIX",
        help="a named literal prefix for encode(prompt_name=...), `query` for encode_query too; "
        "\\n is a line break (repeat)",
    )
    _add_rounding_arguments(parser)
    _add_engine_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written; stop")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing artifact")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    cli.add_traceback(parser)
    parser.set_defaults(command=export)


def _add_rounding_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounding",
        choices=[r.value for r in Rounding],
        help="of quantised weights: compensated on calibration texts (default), or nearest",
    )
    parser.add_argument(
        "--keep",
        action="append",
        metavar="LINEAR",
        help="leave it in 16 bit (of int4-weight in 8, of int8-cpu in 32); * matches (repeat)",
    )
    parser.add_argument(
        "--fp8-attention",
        action="store_true",
        default=None,
        help="with --precision fp8: attention in FP8 too; engines then take 32 tokens and more",
    )
    parser.add_argument(
        "--keep-share",
        type=float,
        metavar="SHARE",
        help="keep at most this share of the weights likewise, where rounding harms most: 0.1",
    )
    parser.add_argument(
        "--fp8-rank",
        type=int,
        metavar="RANK",
        help="with --precision fp8: so many directions of each input, those with most of it, are "
        f"two FP8 numbers each ({RANK}; 0: none, the fastest)",
    )
    parser.add_argument(
        "--calibration", type=Path, help="JSONL of your own texts: text, and instruction if any"
    )
    parser.add_argument("--device", help="calibrate on it: cuda, cuda:1 (cpu)")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep rounded blocks there until the end: an export that is killed goes on from them",
    )
    parser.add_argument(
        "--ranges",
        type=Path,
        metavar="ARTIFACT",
        help="use its calibrated ranges again, without texts (rounding is then nearest)",
    )


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=[f.value for f in Flavour],
        help="compile the graph too; tensorrt-rtx: for RTX and L4/L40 GPUs, without having one; "
        "tensorrt: for the GPU of this machine",
    )
    parser.add_argument("--target", help="GPUs of a tensorrt-rtx engine: sm89,sm120 (all)")
    parser.add_argument(
        "--profile-from", type=Path, help="JSONL of texts whose lengths the engine is tuned for"
    )
    parser.add_argument("--timing-cache", type=Path, help="file that speeds up tensorrt's builds")


def _engine(args: argparse.Namespace) -> dict[str, Any] | None:
    given = {
        "flavour": args.engine,
        "targets": args.target,
        "profile_from": str(args.profile_from) if args.profile_from else None,
        "timing_cache": str(args.timing_cache) if args.timing_cache else None,
    }
    return {key: value for key, value in given.items() if value is not None} or None


def export(args: argparse.Namespace) -> None:
    """Run the command."""
    recipe = load_recipe(args.recipe, _overrides(args))
    checkpoint, out = _paths(recipe)
    if out.exists() and not args.overwrite and not args.dry_run:
        raise ArtifactError(f"{out} exists", "choose another folder, or add --overwrite")
    try:
        from nvembed_deploy.export.pipeline import run_export
        from nvembed_deploy.export.plan import plan_export
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"exporting needs {error.name}, which is not installed",
            _install(str(error.name)),
        ) from error
    if recipe.device != "cpu":
        _check_packages()
    planned = plan_export(checkpoint, recipe)
    plan = describe(planned, out)
    if args.dry_run:
        cli.say(json.dumps(plan, indent=2) if args.json else to_text(plan))
        return
    _check_packages()
    _check_space(plan, out, recipe.cache)
    from nvembed_deploy.export.progress import progress_for
    from nvembed_deploy.model.device import told_if_full

    started = time.monotonic()
    with told_if_full(recipe.device):
        progress = progress_for(is_quiet=args.json)
        manifest = run_export(planned, out, overwrite=args.overwrite, progress=progress)
    seconds = time.monotonic() - started
    if args.json:
        cli.say(json.dumps({"out": str(out), "seconds": seconds, **manifest.to_dict()}, indent=2))
        return
    check = manifest.check or {}
    engines = "".join(
        f"engine {name} in {record.seconds:.0f} s: {record.summary}\n"
        for name, record in manifest.engines.items()
    )
    cli.say(
        f"wrote {out} in {seconds:.1f} s: {recipe.label}, "
        f"{cli.human_bytes(manifest.weights.bytes)}, opset {manifest.opset}\n"
        f"self-check passed ({check['method']}, {check['num_texts']} texts): cosine mean "
        f"{check['mean_cosine']:.7f}, min {check['min_cosine']:.7f}, largest difference "
        f"{check['max_abs']:.1e}\n{engines}"
        f"next: nvembed-deploy encode {shlex.quote(str(out))} --text 'hello'"
    )


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "checkpoint": str(args.checkpoint) if args.checkpoint else None,
        "out": str(args.out) if args.out else None,
        "precision": args.precision,
        "opset": args.opset,
        "pooler": args.pooler,
        "max_tokens": args.max_tokens,
        "prompts": cli.prompts(args.prompt) if args.prompt else None,
        "rounding": args.rounding,
        "keep": args.keep,
        "keep_share": args.keep_share,
        "fp8_rank": args.fp8_rank,
        "fp8_attention": args.fp8_attention,
        "calibration": str(args.calibration) if args.calibration else None,
        "device": args.device,
        "ranges": str(args.ranges) if args.ranges else None,
        "cache": str(args.cache) if args.cache else None,
        "engine": _engine(args),
    }


def _paths(recipe: ExportRecipe) -> tuple[Path, Path]:
    if recipe.checkpoint is None or recipe.out is None:
        missing = "checkpoint" if recipe.checkpoint is None else "out"
        raise RecipeError(
            f"{missing} is not given",
            "name it on the command line (export CHECKPOINT OUT) or in the recipe",
        )
    return Path(recipe.checkpoint), Path(recipe.out)


def _check_packages() -> None:
    """Miss what the self-check needs now, not after the weights were written."""
    for package in _CHECK_PACKAGES:
        if find_spec(package) is None:
            raise MissingPackageError(
                f"the self-check needs {package}, which is not installed",
                _install(package),
            )


def _install(package: str) -> str:
    """Return what installs a package, and ONNX Runtime where it is missing too."""
    extras = [] if package == "onnxruntime" else ["export"]
    if find_spec("onnxruntime") is None:
        extras.append("onnx")
    return f"pip install 'nvembed-deploy[{','.join(extras)}]'"


def _check_space(plan: dict[str, Any], out: Path, cache: str | None) -> None:
    folder = out.resolve().parent
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist", "create it, or choose another folder")
    needed, what = plan["bytes"] * 1.05, "the artifact needs"
    if cache is not None:
        cli.check_folder("cache", Path(cache))
        if _disk_of(Path(cache)) == _disk_of(folder):
            needed, what = 2 * needed, "the artifact and the cache of its blocks need"
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ArtifactError(
            f"{folder} has {cli.human_bytes(free)} free, {what} {cli.human_bytes(needed)}",
            "free space, or choose a folder on another disk",
        )


def _disk_of(path: Path) -> int:
    """Return the number of the disk that a path is on, or will be on."""
    return cli.existing(path).stat().st_dev


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nvembed_deploy.export")
    add_arguments(parser)
    return cli.run(export, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
