"""This file owns the `nvembed-deploy` command: its subcommands, nothing of what they do."""

from __future__ import annotations

import argparse
import sys

import nvembed_deploy
from nvembed_deploy import cli
from nvembed_deploy.bench import __main__ as bench
from nvembed_deploy.commands import (
    assemble,
    build_data,
    compile_engine,
    encode,
    inspect,
    mine,
    synthesize,
)
from nvembed_deploy.export import __main__ as export
from nvembed_deploy.parity import __main__ as parity
from nvembed_deploy.train import __main__ as train

_EPILOG = """examples:
  nvembed-deploy build-data plan.toml --out train.jsonl
  nvembed-deploy mine train.jsonl ./artifact --out mined.jsonl
  nvembed-deploy train train/smoke.toml
  nvembed-deploy assemble ./Mistral-7B-v0.1 ./checkpoint --adapter ./lora --pooler p.safetensors
  nvembed-deploy export ./NV-Embed-v2 ./artifact --precision fp16
  nvembed-deploy compile ./artifact --engine tensorrt-rtx --target sm89
  nvembed-deploy inspect ./artifact
  nvembed-deploy encode ./artifact --text "hello" --out hello.npy
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command; parsed arguments carry their `command`."""
    parser = argparse.ArgumentParser(
        prog="nvembed-deploy",
        description="Export NV-Embed checkpoints to verified engines and run them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=nvembed_deploy.__version__)
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module, summary in (
        ("build-data", build_data, "make training examples of raw text sets"),
        ("synthesize", synthesize, "let a language model write training examples"),
        ("mine", mine, "find hard negatives with a teacher"),
        ("train", train, "train an adapter and a pooler on a decoder"),
        ("assemble", assemble, "make a checkpoint of a base decoder, an adapter and a pooler"),
        ("export", export, "write a checkpoint as an artifact"),
        ("compile", compile_engine, "compile an artifact's graph for GPUs"),
        ("inspect", inspect, "show what an artifact is, and verify its files"),
        ("parity", parity, "decide whether an artifact may replace its reference"),
        ("bench", bench, "measure speed and memory, beside what else people run"),
        ("encode", encode, "turn texts into embeddings"),
    ):
        module.add_arguments(subcommands.add_parser(name, help=summary))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    args = build_parser().parse_args(argv)
    return cli.run(args.command, args)


if __name__ == "__main__":
    sys.exit(main())
