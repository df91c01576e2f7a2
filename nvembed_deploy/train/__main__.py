"""This file owns the training command line: `python -m nvembed_deploy.train RECIPE.toml`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from shlex import quote

from nvembed_deploy import cli
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.packages import need

_EXAMPLES = """examples:
  nvembed-deploy train train/smoke.toml
  nvembed-deploy train train/smol-135m-stage1.toml --resume
  nvembed-deploy train train/smoke.toml --set optimizer.steps=50 --set run.out=build/mine
  torchrun --standalone --nproc_per_node 8 -m nvembed_deploy.train train/nv-embed-v2-stage1.toml
"""
_STEPS = {
    "build-data": "nvembed_deploy.commands.build_data",
    "mine": "nvembed_deploy.commands.mine",
    "synthesize": "nvembed_deploy.commands.synthesize",
}
"""Commands that make data; they join training with an encoder, which this package must not know."""
_PACKAGES = ("accelerate", "datasets", "peft", "pydantic", "safetensors", "torch", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Train a checkpoint: a LoRA adapter and a latent-attention pooler on a frozen decoder."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("recipe", type=Path, help="TOML file; see train/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a value of the recipe (repeat)",
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on from the last saved step")
    earlier.add_argument("--overwrite", action="store_true", help="remove a run that is there")
    parser.add_argument(
        "--dry-run", action="store_true", help="read recipe and data, say what would be done; stop"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    cli.add_traceback(parser)
    parser.set_defaults(command=train)


def train(args: argparse.Namespace) -> None:
    """Run the command."""
    need("training", *_PACKAGES)
    from nvembed_deploy.train.recipe import load_recipe

    recipe = load_recipe(args.recipe, _overrides(args.set))

    if args.dry_run:
        from nvembed_deploy.train.run_data import describe, open_sources
        from nvembed_deploy.train.run_folder import check_paths

        check_paths(recipe)
        cli.say(describe(recipe, open_sources(recipe)))
        return
    from nvembed_deploy.train import loop

    report = loop.train(recipe, resume=args.resume, overwrite=args.overwrite)
    if os.environ.get("RANK", "0") != "0":  # torchrun's number of this process: one tells
        return
    if args.json:
        values = dataclasses.asdict(report) | {"checkpoint": str(report.checkpoint)}
        cli.say(json.dumps(values))
        return
    cli.say(
        f"wrote {report.checkpoint}: {counted(report.steps, 'step')}, loss {report.loss:.4f} "
        f"(mean of the last {counted(report.loss_steps, 'step')}), "
        f"{counted(report.tokens, 'token')} in {report.seconds:,.0f} s, "
        f"{counted(report.truncated, 'text')} cut, {counted(report.skipped, 'step')} left out\n"
        f"curves: {report.checkpoint.parent / 'curves.png'}\n"
        f"next: nvembed-deploy export {quote(str(report.checkpoint))} ARTIFACT"
    )


def _overrides(pairs: list[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise RecipeError(f"--set {pair!r} has no '='", "write --set section.key=value")
        values[key] = value
    return values


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code.

    A first word of `_STEPS` is a step before training, as `nvembed-deploy` has it too.
    """
    words = sys.argv[1:] if argv is None else argv
    prog, declare = "python -m nvembed_deploy.train", add_arguments
    if words and words[0] in _STEPS:
        prog += f" {words[0]}"
        declare = import_module(_STEPS[words[0]]).add_arguments
        words = words[1:]
    parser = argparse.ArgumentParser(prog=prog)
    declare(parser)
    args = parser.parse_args(words)
    return cli.run(args.command, args)


if __name__ == "__main__":
    sys.exit(main())
