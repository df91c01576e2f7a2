"""This file owns the parity command line: `python -m nvembed_deploy.parity ARTIFACT ...`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli
from nvembed_deploy.errors import GateError, InputError, MissingPackageError
from nvembed_deploy.parity import published
from nvembed_deploy.parity.suite import (
    BUILT_IN,
    BUILT_IN_NAME,
    count_texts,
    count_words,
    read_suite,
)
from nvembed_deploy.spec import Precision

if TYPE_CHECKING:
    from nvembed_deploy.parity.check import Tasks
    from nvembed_deploy.parity.side import Side
    from nvembed_deploy.parity.subject import Advance
    from nvembed_deploy.parity.verdict import Verdict

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
    parser.add_argument("--margin", type=float, help="most that a main score may be lower")
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
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (%(default)s)")
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


def parity(args: argparse.Namespace) -> None:
    """Run the command."""
    needed = ("mteb", "datasets", "scipy", *(["onnx"] if args.trace else []))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"the parity check needs {', '.join(missing)}", "pip install 'nvembed-deploy[parity]'"
        )
    for path in (args.artifact, args.reference):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist", "correct the path")
    if args.reference is None and not args.scores:
        raise InputError(
            "no --reference was given", "name the checkpoint it was made of, or ask for --scores"
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
        _describe(args, tasks)
    elif args.scores:
        _scores(args, tasks)
    else:
        _judge(args, tasks)


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
    from nvembed_deploy.parity.check import DEFAULT_CACHE, Options, check_parity
    from nvembed_deploy.parity.report import record, write_report

    options = Options(args.cache or DEFAULT_CACHE, args.seed, args.margin, args.trace)
    candidate, reference = _sides(args)
    started = time.monotonic()
    with _progress(2 * tasks.texts) as advance:
        verdict = check_parity(candidate, reference, tasks, options, advance)
    if args.out is not None:
        write_report(args.out, verdict, candidate, reference, time.monotonic() - started)
    recorded = not args.no_record and record(args.artifact, verdict)
    if args.json:
        cli.say(json.dumps(verdict.summary()))
    else:
        _print(verdict)
        if args.out is not None:
            cli.say(f"report: {args.out / 'report.html'}")
        if recorded:
            cli.say(f"verdict written into {args.artifact}")
    if not verdict.passed:
        raise GateError(
            f"{args.artifact} may not replace {args.reference}: " + "; ".join(verdict.reasons),
            "; ".join(verdict.causes)
            or "keep sensitive linears in 16 bit (--keep), choose a finer precision, or accept the "
            "loss with --margin",
        )


def _print(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"precision {verdict.precision}, margin {verdict.margins.score:g}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", min_width=3)
    table.add_column("task", no_wrap=True)
    for name in ("reference", "artifact", "difference", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in verdict.tasks:
        between = task.interval
        table.add_row(
            "[green]yes[/]" if task.passed else "[red]no[/]",
            task.name,
            f"{task.reference:.4f}",
            f"{task.candidate:.4f}",
            f"{task.difference:+.4f}",
            f"{between.low:+.4f} .. {between.high:+.4f}" if between else "",
        )
    console = Console()
    console.print(table)
    found = verdict.embedding
    console.print(
        f"{found.texts} texts: cosine mean {found.mean_cosine:.6f}, min {found.min_cosine:.6f}; "
        f"nearest ten agree {found.neighbours:.1%}, queries in the reference's index "
        f"{found.cross_neighbours:.1%}\nbatch drift {found.batch_drift:.1e}, long text "
        f"{found.long_cosine:.6f}"
    )
    if verdict.trace:
        console.print("\n".join(verdict.trace.lines()), highlight=False)
    answer = "[green]yes[/]: it may replace" if verdict.passed else "[red]no[/]: it may not replace"
    console.print(f"{answer} the reference")
    for note in verdict.basis.notes if verdict.basis else []:
        console.print(f"note: {note}", highlight=False)


def _scores(args: argparse.Namespace, tasks: Tasks) -> None:
    from nvembed_deploy.parity.check import DEFAULT_CACHE
    from nvembed_deploy.parity.mteb_encoder import local_task, named_tasks, run_task
    from nvembed_deploy.parity.side import open_subject

    side = _sides(args)[0]
    scores: dict[str, tuple[str, float]] = {}
    with ExitStack() as stack, _progress(tasks.texts) as advance:
        subject = open_subject("model", side, args.cache or DEFAULT_CACHE, stack)
        subject.advance = advance
        for task in [local_task(t) for t in tasks.local] + named_tasks(tasks.named):
            run = run_task(task, subject)
            scores[run.name] = (run.metric, run.score)
    average = sum(score for _, score in scores.values()) / len(scores)
    if args.json:
        rows = {name: {"metric": m, "score": round(s, 6)} for name, (m, s) in scores.items()}
        cli.say(json.dumps({"tasks": rows, "average": round(average, 6)}))
        return
    for name, (metric, score) in scores.items():
        cli.say(f"{name:<32} {metric:<16} {score:.4f}")
    cli.say(f"{'average':<49} {average:.4f}")
    if args.published:
        known = {name: score for name, (_, score) in scores.items()}
        cli.say("\n".join(["", *published.compare(known, args.published)]))


def _describe(args: argparse.Namespace, tasks: Tasks) -> None:
    for task in tasks.local:
        cli.say(
            f"{task.name:<32} {task.kind:<20} {count_texts(task):>7,} texts  "
            f"instruction: {task.instruction or '(none)'}"
        )
    for name in tasks.named:
        cli.say(f"{name:<32} by mteb's name: fetched when it is run")
    words = sum(count_words(task) for task in tasks.local)
    sides = "artifact" if args.scores else "artifact and reference"
    cli.say(f"{tasks.texts:,} texts, about {words * 3 // 2:,} tokens, on {sides}")


@contextmanager
def _progress(total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("texts"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total or None)
        yield lambda count: bars.advance(task, count)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nvembed_deploy.parity")
    add_arguments(parser)
    args = parser.parse_args(argv)
    return cli.run(args.command, args)


if __name__ == "__main__":
    sys.exit(main())
