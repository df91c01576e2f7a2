"""This file owns `nvembed-deploy compile`: an artifact gets an engine for some GPU.

It needs the artifact and TensorRT; neither the checkpoint nor torch. The TensorRT runtimes run it
where they find no engine that fits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nvembed_deploy import cli
from nvembed_deploy.engine_record import EngineRecord, Flavour
from nvembed_deploy.errors import RecipeError

_EXAMPLES = """examples:
  nvembed-deploy compile ./artifact --engine tensorrt
  nvembed-deploy compile ./artifact --engine tensorrt-rtx --target sm89,sm120
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Compile an artifact's graph for GPUs, and keep the engine in it."
    parser.epilog = _EXAMPLES
    parser.add_argument("artifact", type=Path, help="artifact folder; it may be in use")
    parser.add_argument(
        "--engine",
        choices=[flavour.value for flavour in Flavour],
        default=Flavour.TENSORRT.value,
        help="tensorrt: for the GPU of this machine (default); tensorrt-rtx: for RTX and L4/L40 "
        "GPUs, without having one",
    )
    parser.add_argument("--target", help="GPUs of a tensorrt-rtx engine: sm89,sm120 (all)")
    parser.add_argument(
        "--profile-from", type=Path, help="JSONL of texts whose lengths the engine is tuned for"
    )
    parser.add_argument("--timing-cache", type=Path, help="file that speeds up tensorrt's builds")
    parser.add_argument(
        "--strip-weights",
        action="store_true",
        help="tensorrt: leave weights out of the plan; the graph's file gives them back at load",
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="tensorrt: run on later versions too"
    )
    parser.add_argument("--overwrite", action="store_true", help="compile anew what is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    cli.add_traceback(parser)
    parser.set_defaults(command=compile_engine)


def compile_engine(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.export.engine_add import add_engine
    from nvembed_deploy.export.engine_options import engine_options
    from nvembed_deploy.export.progress import progress_for

    options, mistake = engine_options(_table(args))
    if options is None:
        raise RecipeError(str(mistake), "see nvembed-deploy compile --help")
    with progress_for(is_quiet=args.json).step("engine", 100) as advance:
        name, record, is_new = add_engine(
            args.artifact, options, overwrite=args.overwrite, advance=advance
        )
    if args.json:
        said = {"name": name, "compiled": is_new, **record.to_dict()}
        cli.say(json.dumps(said, indent=2))
        return
    how = f"compiled in {record.seconds:.0f} s" if is_new else _there_already(record)
    cli.say(f"{args.artifact / name}: {how}\n{record.summary}")


def _there_already(record: EngineRecord) -> str:
    shaped = f" with {', '.join(record.options)}" if record.options else ""
    return f"there already{shaped} (--overwrite)"


def _table(args: argparse.Namespace) -> dict[str, object]:
    """Return the options that were given, as a recipe's table has them."""
    given = {
        "flavour": args.engine,
        "targets": args.target,
        "profile_from": str(args.profile_from) if args.profile_from else None,
        "timing_cache": str(args.timing_cache) if args.timing_cache else None,
        "strip_weights": args.strip_weights or None,
        "version_compatible": args.version_compatible or None,
    }
    return {key: value for key, value in given.items() if value is not None}
