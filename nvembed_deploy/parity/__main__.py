"""This file owns the parity command line: `python -m nvembed_deploy.parity ARTIFACT ...`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli
from nvembed_deploy.errors import GateError, InputError, MissingPackageError
from nvembed_deploy.parity import published, screen
from nvembed_deploy.parity.suite import BUILT_IN, BUILT_IN_NAME, read_suite
from nvembed_deploy.spec import Precision

if TYPE_CHECKING:
    from nvembed_deploy.parity.check import Tasks
    from nvembed_deploy.parity.side import Side

_EXAMPLES = """examples:
  nvembed-deploy parity ./artifact --reference ./NV-Embed-v2
  nvembed-deploy parity ./artifact-fp8 --reference ./artifact-fp32 --suite ./my-suite
  nvembed-deploy parity ./artifact --reference ./NV-Embed-v2 --mteb "MTEB(eng, v2)"
  nvembed-deploy parity ./artifact --suite ./my-suite --scores

exit code: 0 it may replace the reference, 1 it may not, 2 bad input, 3 a package is missing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Decide whether an artifact may replace its reference, on MTEB tasks."
    parser.epilog = _EXAMPLES
    parser.add_argument("artifact", type=Path, help="artifact (or checkpoint) to judge")
    parser.add_argument("--reference", type=Path, help="checkpoint or artifact it must equal")
    parser.add_argument(
        "--suite", type=Path, help="folder of tasks (default: a small built-in one)"
    )
    parser.add_argument("--task", action="append", default=[], help="only this one (repeat)")
    parser.add_argument(
        "--mteb",
        action="append",
        default=[],
        metavar="NAME",
        help="mteb task or benchmark (repeat)",
    )
    parser.add_argument("--margin", type=_margin, help="most that a main score may be lower")
    parser.add_argument("--runtime", default="auto", help="of the artifact (%(default)s)")
    parser.add_argument("--reference-runtime", default="auto", help="of the reference")
    parser.add_argument(
        "--reference-dtype",
        choices=[precision.value for precision in Precision],
        default=Precision.FP32.value,
        help="what checkpoints are computed in by default, on GPUs too (%(default)s)",
    )
    parser.add_argument("--device", help="of both: cpu, cuda, ...")
    parser.add_argument("--out", type=Path, help="folder for report.json and report.html")
    parser.add_argument("--cache", type=Path, help="folder of embeddings (build/parity-cache)")
    parser.add_argument(
        "--trace", action="store_true", help="compare the states after each layer too"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the resampling (%(default)s)")
    parser.add_argument(
        "--scores", action="store_true", help="measure the artifact alone; no verdict"
    )
    parser.add_argument(
        "--published",
        choices=published.MODELS,
        help="with --scores: hold a run of the real weights against the published scores",
    )
    parser.add_argument(
        "--no-record", action="store_true", help="do not write the verdict into the manifest"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured; stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    cli.add_traceback(parser)
    parser.set_defaults(command=parity)


def _margin(text: str) -> float:
    """Read --margin, as argparse calls it: scores are from 0 to 1."""
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not 0 <= margin <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 1")
    return margin


def parity(args: argparse.Namespace) -> None:
    """Run the command."""
    _check_options(args)
    needed = ("mteb", "datasets", "scipy", *(["onnx"] if args.trace else []))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"the parity check needs {', '.join(missing)}", "pip install 'nvembed-deploy[parity]'"
        )
    from nvembed_deploy.parity.check import Tasks
    from nvembed_deploy.parity.side import check_dtype

    check_dtype(_sides(args))
    if not args.scores:
        _check_reference(args)
    local = [] if args.mteb and args.suite is None else _suite(args)
    suite = args.suite.resolve().name if args.suite else BUILT_IN_NAME
    tasks = Tasks(local, tuple(args.mteb), suite)
    if args.dry_run:
        screen.describe(tasks, "artifact" if args.scores else "artifact and reference")
    elif args.scores:
        _scores(args, tasks)
    else:
        _judge(args, tasks)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse paths that are not there, and options that would be for nothing."""
    for path in (args.artifact, args.reference):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist", "correct the path")
    alone = "is of a comparison, and --scores measures the artifact alone"
    for is_broken, problem, fix in (
        (
            args.reference is None and not args.scores,
            "no --reference was given",
            "name the checkpoint it was made of, or ask for --scores",
        ),
        (args.scores and args.trace, f"--trace {alone}", "leave one of them out"),
        (args.scores and args.out, f"--out {alone}", "leave one of them out"),
        (
            args.published and (args.json or not args.scores),
            "--published adds lines to the table of --scores, and there is none",
            "give --scores, and no --json",
        ),
        (
            args.task and args.mteb and args.suite is None,
            "--task names tasks of a suite, and with --mteb and no --suite there is none",
            "name the suite too, or leave --task out; --mteb takes a single task as well",
        ),
    ):
        if is_broken:
            raise InputError(problem, fix)
    if args.out is not None:
        cli.check_folder("--out", args.out)


def _check_reference(args: argparse.Namespace) -> None:
    """Refuse to record how an artifact differs from one that has lost something itself.

    And a trace that could not be computed.
    """
    from nvembed_deploy.parity.basis import quantized_note
    from nvembed_deploy.parity.trace import check_traceable

    if args.trace:
        check_traceable(args.artifact)
        check_traceable(args.reference)
    note = quantized_note(args.reference)
    if note and not args.no_record:
        raise InputError(
            f"{args.reference}: {note}",
            "name the checkpoint it was made of, or an fp32 or 16-bit artifact; to compare these "
            "two alone, and record nothing: --no-record",
        )


def _suite(args: argparse.Namespace) -> Any:  # noqa: ANN401 - list of LocalTask
    return read_suite(args.suite or BUILT_IN, tuple(args.task))


def _sides(args: argparse.Namespace) -> list[Side]:
    """Return the artifact, and the reference if there is one."""
    from nvembed_deploy.parity.side import Side

    dtype = Precision(args.reference_dtype)
    sides = [Side(args.artifact, args.runtime, args.device, dtype)]
    if args.reference is not None:
        sides.append(Side(args.reference, args.reference_runtime, args.device, dtype))
    return sides


def _judge(args: argparse.Namespace, tasks: Tasks) -> None:
    from nvembed_deploy.parity.basis import check_unchanged, identity_of
    from nvembed_deploy.parity.check import DEFAULT_CACHE, Options, check_parity
    from nvembed_deploy.parity.report import record, write_report

    options = Options(args.cache or DEFAULT_CACHE, args.seed, args.margin, args.trace)
    candidate, reference = _sides(args)
    measured = {side.path: identity_of(side.path) for side in (candidate, reference)}
    started = time.monotonic()
    with screen.progress(2 * tasks.known) as advance:
        verdict = check_parity(candidate, reference, tasks, options, advance)
    for path, identity in measured.items():
        check_unchanged(path, identity)
    if args.out is not None:
        write_report(args.out, verdict, candidate, reference, time.monotonic() - started)
    summary = verdict.summary()
    recorded = not args.no_record and record(args.artifact, summary, measured[args.artifact])
    if args.json:
        cli.say_to_any(json.dumps(summary, allow_nan=False))
    else:
        screen.show(verdict)
        if args.out is not None:
            cli.say_to_any(f"report: {args.out / 'report.html'}")
        if recorded:
            cli.say_to_any(f"verdict written into {args.artifact}")
    if not verdict.passed:
        raise GateError(
            f"{args.artifact} may not replace {args.reference}: " + "; ".join(verdict.reasons),
            "; ".join(verdict.causes)
            or "choose a finer precision, keep what rounding harms most (export --keep-share), or "
            "accept the loss with --margin",
        )


def _scores(args: argparse.Namespace, tasks: Tasks) -> None:
    from nvembed_deploy.parity.check import DEFAULT_CACHE
    from nvembed_deploy.parity.mteb_encoder import prepare, run_task
    from nvembed_deploy.parity.side import open_subject
    from nvembed_deploy.parity.verdict import finite

    side = _sides(args)[0]
    scores: dict[str, tuple[str, float]] = {}
    with ExitStack() as stack, screen.progress(tasks.known) as advance:
        subject = open_subject("model", side, args.cache or DEFAULT_CACHE, stack)
        subject.advance = advance
        for task in prepare(tasks.local, tasks.named):
            run = run_task(task, subject)
            scores[run.name] = (run.metric, run.score)
    average = sum(score for _, score in scores.values()) / len(scores)
    if args.json:
        rows = {name: {"metric": m, "score": round(s, 6)} for name, (m, s) in scores.items()}
        found = finite({"tasks": rows, "average": round(average, 6)})
        cli.say(json.dumps(found, allow_nan=False))
        return
    for name, (metric, score) in scores.items():
        cli.say(f"{name:<32} {metric:<16} {score:.4f}")
    cli.say(f"{'average':<49} {average:.4f}")
    if args.published:
        known = {name: score for name, (_, score) in scores.items()}
        cli.say("\n".join(["", *published.compare(known, args.published)]))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nvembed_deploy.parity")
    add_arguments(parser)
    args = parser.parse_args(argv)
    return cli.run(args.command, args)


if __name__ == "__main__":
    sys.exit(main())
