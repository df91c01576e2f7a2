"""This file owns `nvembed-deploy build-data`: a data plan to one file of training examples."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError
from nvembed_deploy.train.counts import counted
from nvembed_deploy.train.packages import need

if TYPE_CHECKING:
    from nvembed_deploy.train.data.build import SourceReport
    from nvembed_deploy.train.data.lengths import Lengths
    from nvembed_deploy.train.data.rows import Row

_EXAMPLES = """examples:
  nvembed-deploy build-data plan.toml --out train.jsonl
  nvembed-deploy build-data plan.toml --out train.jsonl.gz --skip-bad --tokenizer ./NV-Embed-v2
  nvembed-deploy build-data --lengths train.jsonl --tokenizer ./NV-Embed-v2/tokenizer.json

a plan, with one of these tables for each raw set:
  [[source]]
  name = "questions"
  path = "raw/questions.jsonl"
  kind = "pairs"     # or sts, label-texts, classification, clustering: these need an instruction
"""
_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Build training examples of raw sets by NV-Embed's rules, without evaluation texts."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "plan", type=Path, nargs="?", help="TOML file that names the raw sets; see below"
    )
    parser.add_argument("--out", type=Path, help=".jsonl or .jsonl.gz file to write")
    parser.add_argument("--lengths", type=Path, help="only measure the texts of this file")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json: measure tokens too")
    parser.add_argument(
        "--skip-bad", action="store_true", help="count bad rows and leave them out (default: stop)"
    )
    cli.add_traceback(parser)
    parser.set_defaults(command=build_data)


def build_data(args: argparse.Namespace) -> None:
    """Run the command."""
    if (args.plan is None) == (args.lengths is None) or (args.plan and not args.out):
        raise InputError(
            "give a plan and --out, or --lengths alone",
            "nvembed-deploy build-data plan.toml --out train.jsonl",
        )
    from nvembed_deploy.train.data.lengths import Lengths, load_tokenizer

    lengths = Lengths(load_tokenizer(args.tokenizer) if args.tokenizer else None)
    if args.lengths:
        _measure(args.lengths, lengths, skip_bad=args.skip_bad)
    else:
        _build(args, lengths)


def _measure(path: Path, lengths: Lengths, *, skip_bad: bool) -> None:
    from nvembed_deploy.train.data.rows import Faults, read_pairs

    faults = Faults(stop=not skip_bad)
    for _, row in read_pairs(path, faults):
        lengths.add(row)
    cli.say(lengths.table())
    for line in faults.lines():
        cli.say(f"left out {line}")


def _build(args: argparse.Namespace, lengths: Lengths) -> None:
    need("building data", "pydantic")
    from nvembed_deploy.train.data.build import Builder
    from nvembed_deploy.train.data.plan import load_plan
    from nvembed_deploy.train.data.rows import check_out, write_rows

    check_out(args.out)
    builder = Builder(load_plan(args.plan), skip_bad=args.skip_bad, out=args.out)

    def measured() -> Iterator[Row]:
        for row in builder.rows():
            lengths.add(row)
            yield row

    count = write_rows(args.out, measured())
    for report in builder.reports:
        _say(report)
    cli.say(f"\n{lengths.table()}\n\nwrote {args.out}: {counted(count, 'example')}")
    cli.say("next: name it in a recipe of train/, or nvembed-deploy mine for hard negatives")


def _say(report: SourceReport) -> None:
    cut = f", {report.over_limit:,} over the limit" if report.over_limit else ""
    cli.say(f"{report.name}: {counted(report.kept, 'example')}{cut}")
    for line in report.faults.lines():
        cli.say(f"  left out {line}")
    if report.near_duplicates:
        texts = counted(len(report.near_duplicates), "text")
        cli.say(f"  left out {texts} nearly in an evaluation:")
    for text, held_out in list(report.near_duplicates.items())[:_SHOWN]:
        cli.say(f"    {text!r:.60} ~ {held_out!r:.60}")
