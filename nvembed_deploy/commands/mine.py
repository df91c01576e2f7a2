"""This file owns `nvembed-deploy mine`: pairs and a teacher to pairs with hard negatives."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError
from nvembed_deploy.train.counts import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nvembed_deploy.runtimes import Encoder
    from nvembed_deploy.train.data.negatives import Choice
    from nvembed_deploy.train.data.rows import Faults

_EXAMPLES = """examples:
  nvembed-deploy mine train.jsonl ./artifact --out mined.jsonl
  nvembed-deploy mine train.jsonl ./checkpoint --out mined.jsonl --device cuda --cache ./embedded
  nvembed-deploy mine train.jsonl ./artifact --out mined.jsonl --rule margin --margin 0.1
"""
_RULES = ("perc-pos", "margin", "top-k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Find hard negatives with a teacher, and leave out what is likely relevant itself."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument("pairs", type=Path, help="examples: .jsonl or .jsonl.gz")
    parser.add_argument("teacher", type=Path, help="artifact (or checkpoint) folder")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl or .jsonl.gz to write")
    parser.add_argument("--negatives", type=cli.positive, default=7, help="a query (%(default)s)")
    parser.add_argument("--rule", choices=_RULES, default=_RULES[0], help="(%(default)s)")
    parser.add_argument(
        "--margin", type=float, help="of the rule (perc-pos 0.95 of the positive, margin 0.05)"
    )
    parser.add_argument(
        "--depth", type=cli.positive, default=100, help="passages looked at (%(default)s)"
    )
    parser.add_argument("--corpus", type=Path, help='further passages: JSON lines with "text"')
    parser.add_argument(
        "--cache", type=Path, help="keep embeddings in this folder, for the next rule"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="count bad lines and leave them out (default: stop)"
    )
    _add_teacher_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    cli.add_traceback(parser)
    parser.set_defaults(command=mine)


def _add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime", default="auto", help="auto, onnx, torch, tensorrt, ... (%(default)s)"
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, tensorrt; several: cuda:0,cuda:1 (default: what is there)",
    )
    parser.add_argument("--max-tokens", type=cli.positive, help="cut longer texts (default: model)")
    parser.add_argument(
        "--batch-size", type=cli.positive, help="texts a batch (default: by tokens)"
    )
    parser.add_argument("--threads", type=cli.positive, help="processor threads")


class _CutTexts:
    """An encoder that cuts texts: the teacher of a mining run."""

    def __init__(self, encoder: Encoder, max_tokens: int | None, batch_size: int | None) -> None:
        self._encoder = encoder
        self._options: dict[str, Any] = {
            "max_length": max_tokens,
            "batch_size": batch_size,
            "show_progress_bar": False,
        }

    def encode(
        self, inputs: Sequence[str], *, instruction: str | None = None
    ) -> NDArray[np.float32]:
        rows_ND: NDArray[np.float32] = self._encoder.encode(
            list(inputs), instruction=instruction, **self._options
        )
        return rows_ND


def mine(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.train.data.corpus import read_corpus
    from nvembed_deploy.train.data.mining import Miner
    from nvembed_deploy.train.data.rows import Faults, check_out, read_pairs

    check_out(args.out)
    faults = Faults(stop=not args.skip_bad)
    choice = _choice(args)
    rows = [row for _, row in read_pairs(args.pairs, faults)]
    if not rows:
        raise InputError(f"{args.pairs} holds no example", "give what build-data wrote")
    corpus = read_corpus(args.corpus, faults) if args.corpus else []
    miner = Miner(rows, choice, corpus)
    count = _write_mined(args, miner)
    if args.json:
        cli.say(json.dumps(miner.totals() | {"faults": faults.counts}))
        return
    _say(miner.report.lines(), faults)
    written = f"wrote {args.out}: {counted(count, 'example')}"
    cli.say(f"{written}\nnext: name it in a recipe of train/")


def _choice(args: argparse.Namespace) -> Choice:
    from nvembed_deploy.train.data.negatives import DEFAULT_MARGINS, Choice, Rule

    rule = Rule(args.rule)
    margin = DEFAULT_MARGINS[rule] if args.margin is None else args.margin
    return Choice(rule, margin, args.negatives, args.depth)


def _write_mined(args: argparse.Namespace, miner: Any) -> int:  # noqa: ANN401 - imported later
    """Embed, search and write; embeddings that nobody asked to keep are removed at the end."""
    from nvembed_deploy.runtimes import RuntimeOptions, load_encoder
    from nvembed_deploy.runtimes.progress import progress_bar
    from nvembed_deploy.train.data.embeddings import EmbeddingStore, folder_id
    from nvembed_deploy.train.data.rows import write_rows

    folder = args.cache or args.out.with_name(f".{args.out.name}.embeddings")
    options = RuntimeOptions(device=args.device, threads=args.threads)
    with (
        load_encoder(args.teacher, args.runtime, options=options) as encoder,
        progress_bar(miner.num_texts, sys.stderr.isatty()) as advance,
    ):
        teacher_id = f"{folder_id(args.teacher)}\n{args.runtime} {args.device} {args.max_tokens}"
        teacher = _CutTexts(encoder, args.max_tokens, args.batch_size)
        store = EmbeddingStore(folder, teacher, teacher_id)
        count = write_rows(args.out, miner.mine(store, advance))
    if args.cache is None:
        shutil.rmtree(folder)
    return count


def _say(lines: list[str], faults: Faults) -> None:
    for line in [*lines, *(f"left out {line.strip()}" for line in faults.lines())]:
        cli.say(line)
