"""This file owns the benchmark command line: `python -m nvembed_deploy.bench ARTIFACT ...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nvembed_deploy import cli
from nvembed_deploy.bench.side import (
    COMPETITORS,
    OURS,
    SERVERS,
    competitor,
    own_sides,
    with_distinct_names,
)
from nvembed_deploy.errors import GateError, HardwareError, InputError
from nvembed_deploy.spec import Precision

if TYPE_CHECKING:
    from nvembed_deploy.bench.measure import Note
    from nvembed_deploy.bench.ratios import Verdict
    from nvembed_deploy.bench.run import Plan
    from nvembed_deploy.bench.side import Side

_seconds = partial(cli.number, least=0.001)
_WIDTH = 120
"""Columns where no terminal says how many it has."""
_EXAMPLES = """examples:
  nvembed-deploy bench ./artifact
  nvembed-deploy bench fp32=./artifact int8=./artifact-int8 --mix queries
  nvembed-deploy bench ./artifact --checkpoint ./NV-Embed-v2 --against sentence-transformers
  nvembed-deploy bench ./artifact --against tei=http://localhost:8080 --json bench.json

exit code: 0 done, 1 a ratio is below its floor, 2 bad input, 3 a package or hardware is missing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Measure how fast artifacts encode, beside what else people run."
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "sides", nargs="+", metavar="[NAME=]PATH", help="artifacts or checkpoints; first = the base"
    )
    parser.add_argument("--runtime", action="append", default=[], help="of these (repeat)")
    parser.add_argument(
        "--dtype", choices=[p.value for p in Precision], help="of those that torch runs"
    )
    parser.add_argument("--device", help="of all sides: cpu, cuda, ...")
    parser.add_argument("--threads", type=cli.positive, help="processor threads of every side")
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"{', '.join(COMPETITORS)}; servers: {', '.join(f'{s}=URL' for s in SERVERS)}",
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="weights of the competitors (default: a side that is one)"
    )
    parser.add_argument(
        "--mix",
        nargs="+",
        default=[],
        metavar="MIX",
        help="queries, passages, long, real, or a .jsonl file (default: the first three)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=20.0, help="by side and mix (%(default)s)"
    )
    parser.add_argument("--rounds", type=cli.positive, default=5, help="at most (%(default)s)")
    parser.add_argument(
        "--texts", type=cli.positive, help="of a round, at least (default: the mix's own)"
    )
    parser.add_argument("--starts", type=cli.positive, default=2, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (%(default)s)")
    parser.add_argument(
        "--scaling", action="store_true", help="cost against batch, length and corpus too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots here")
    parser.add_argument(
        "--ratios", type=Path, metavar="FILE", help="floors to hold this run against (.toml)"
    )
    cli.add_traceback(parser)
    parser.set_defaults(command=bench)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.bench.ratios import check_floors, judge, read_floors
    from nvembed_deploy.bench.report_html import render
    from nvembed_deploy.bench.run import run_benchmark
    from nvembed_deploy.bench.table import print_report
    from nvembed_deploy.staging import replace_text

    plan = _plan(args)
    for option in ("json", "html"):
        cli.check_out(f"--{option}", getattr(args, option))
    floors = read_floors(args.ratios) if args.ratios else []
    check_floors(floors, [side.name for side in plan.sides], plan.mixes)
    with _progress() as note:
        report = run_benchmark(plan, note)
    if args.json:
        report.write_json(args.json)
    if args.html:
        replace_text(args.html, render(report))
    with cli.console(_WIDTH) as console:
        print_report(report, console)
    if floors:
        _hold(judge(report, floors))
    if report.faults:
        raise HardwareError(
            f"{len(report.faults)} of {len(report.sides)} sides failed: "
            + "; ".join(report.faults.values()),
            "what the others did is above; leave these out, or measure fewer sides at once",
        )


def _hold(verdicts: list[Verdict]) -> None:
    from nvembed_deploy.bench.table import print_verdicts

    with cli.console(_WIDTH) as console:
        print_verdicts(verdicts, console)
    missed = [verdict.floor for verdict in verdicts if not verdict.passed]
    if missed:
        raise GateError(
            f"{len(missed)} of {len(verdicts)} ratios are below their floor: "
            + "; ".join(f"{f.measure} {f.mix} over {f.against}".replace("  ", " ") for f in missed),
            "run it again on a quiet machine; if it stays, look for what made ours slower",
        )


def _plan(args: argparse.Namespace) -> Plan:
    from nvembed_deploy.bench.measure import Effort
    from nvembed_deploy.bench.mixes import DEFAULT
    from nvembed_deploy.bench.run import Plan

    ours = [replace(side, dtype=args.dtype) for side in own_sides(args.sides, args.runtime)]
    ours = [replace(side, device=args.device) for side in ours]
    theirs = [replace(competitor(n), device=_device_of_theirs(args.device)) for n in args.against]
    sides = [replace(side, threads=args.threads) for side in ours + theirs]
    return Plan(
        with_distinct_names(sides),
        checkpoint=_checkpoint(args, sides),
        mixes=tuple(args.mix) or DEFAULT,
        effort=Effort(args.seconds, args.rounds, args.texts),
        starts=args.starts,
        seed=args.seed,
        has_scaling=args.scaling,
    )


def _device_of_theirs(device: str | None) -> str | None:
    """Return the device by torch's name: TensorRT's providers are ONNX Runtime's devices."""
    if device is None or not device.startswith("tensorrt"):
        return device
    _, _, number = device.partition(":")
    return f"cuda:{number}" if number else "cuda"


def _checkpoint(args: argparse.Namespace, sides: list[Side]) -> Path | None:
    """Return whose weights the competitors get.

    Raises:
        InputError: a competitor needs them and no checkpoint is named.
    """
    from nvembed_deploy.artifact import is_artifact

    own = [Path(side.path) for side in sides if side.kind == OURS]
    named = args.checkpoint or next((path for path in own if not is_artifact(path)), None)
    if named is None and any(side.needs_weights for side in sides):
        raise InputError(
            "the competitors need the model's weights, and no side is a checkpoint",
            "name the one that the artifact was exported from: --checkpoint DIR",
        )
    if named is not None and not named.is_dir():
        raise InputError(f"checkpoint {named} does not exist", "correct the path")
    return named


@contextmanager
def _progress() -> Iterator[Note]:
    """Yield a function that shows on standard error what is done now: a line each in a log."""
    from rich.console import Console
    from rich.markup import escape

    console, started = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        yield lambda text: console.print(f"{time.monotonic() - started:5.0f} s  {escape(text)}")
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(text))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nvembed_deploy.bench")
    add_arguments(parser)
    args = parser.parse_args(argv)
    return cli.run(args.command, args)


if __name__ == "__main__":
    sys.exit(main())
