"""This file owns `nvembed-deploy synthesize`: training examples written by a language model."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError
from nvembed_deploy.train.counts import counted

_EXAMPLES = """examples:
  nvembed-deploy synthesize http://localhost:8000/v1 --model mixtral --tasks 300 --out made.jsonl
  nvembed-deploy synthesize https://api.example.com/v1 --model large --tasks 60000 \\
      --out made.jsonl --concurrency 64 --api-key-env EXAMPLE_KEY
"""
_LEAST_SECONDS = 0.001
"""Of a reply; a socket takes 0 for not waiting."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Let a language model think up tasks, then write examples of each: retrieval, "
        "classification and short matching, in equal parts."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("endpoint", help="URL of an OpenAI-compatible server, with its /v1")
    parser.add_argument("--model", required=True, help="the server's name of the model")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl or .jsonl.gz to write")
    parser.add_argument("--tasks", type=cli.positive, default=300, help="in all (%(default)s)")
    parser.add_argument("--examples", type=cli.positive, default=2, help="a task (%(default)s)")
    parser.add_argument("--language", default="English", help="of the examples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked (%(default)s)")
    parser.add_argument(
        "--concurrency", type=cli.positive, default=8, help="requests at a time (%(default)s)"
    )
    parser.add_argument("--temperature", type=cli.number, default=1.0, help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=cli.positive, default=2048, help="of a reply (%(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=partial(cli.number, least=_LEAST_SECONDS),
        default=300,
        help="seconds a reply (%(default)s)",
    )
    parser.add_argument("--tries", type=cli.positive, default=6, help="a request (%(default)s)")
    parser.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (%(default)s); none is sent if it is empty",
    )
    parser.add_argument(
        "--keep-replies", action="store_true", help="keep the replies, to ask for more later"
    )
    cli.add_traceback(parser)
    parser.set_defaults(command=synthesize)


def synthesize(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.runtimes.progress import progress_bar
    from nvembed_deploy.train.data.endpoint import Endpoint
    from nvembed_deploy.train.data.rows import check_out, write_rows
    from nvembed_deploy.train.data.synthesis import Order, Synthesis, open_log

    check_out(args.out)
    endpoint = Endpoint(
        args.endpoint,
        args.model,
        key=_key(args.api_key_env),
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        timeout_seconds=args.timeout,
        tries=args.tries,
    )
    order = Order(args.tasks, args.examples, args.language, args.seed, args.concurrency)
    folder = args.out.with_name(f".{args.out.name}.replies")
    with (
        open_log(folder, order, args.model) as log,
        closing(endpoint),
        progress_bar(order.tasks * order.examples_a_task, sys.stderr.isatty()) as advance,
    ):
        synthesis = Synthesis(endpoint.answer, order, log)
        count = write_rows(args.out, synthesis.run(advance))
    if not args.keep_replies:
        shutil.rmtree(folder)
    for reason, number in synthesis.faults.most_common():
        cli.say(f"{number:>7,} x reply of no use: {reason}")
    if synthesis.repeated:
        cli.say(f"{synthesis.repeated:>7,} x left out: occurred before")
    ordered = order.tasks * order.examples_a_task
    if lost := ordered - count - synthesis.repeated:
        cli.say(f"{lost:>7,} x not made: no reply was of use, or no task was left")
    cli.say(f"wrote {args.out}: {counted(count, 'example')} of {ordered:,} ordered")
    cli.say("next: name it in a data plan, which leaves out evaluation texts")


def _key(name: str) -> str | None:
    key = os.environ.get(name, "").strip()
    if not key.isprintable() or not key.isascii():
        raise InputError(f"{name} holds no key", "set it to the key alone")
    return key or None
