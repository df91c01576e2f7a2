"""This file owns `nvembed-deploy encode`: lines or JSONL in, .npy or JSONL out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError

if TYPE_CHECKING:
    from nvembed_deploy.commands.embedding_file import Record, Windows

_EXAMPLES = """examples:
  nvembed-deploy encode ./artifact --text "hello"
  nvembed-deploy encode ./artifact --input passages.txt --out passages.npy
  nvembed-deploy encode ./artifact --input queries.jsonl --field text --out embedded.jsonl \\
      --instruction "Given a question, retrieve passages that answer the question"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Turn texts into embeddings: one text a line, or JSON lines."
    parser.epilog = _EXAMPLES
    parser.add_argument("artifact", type=Path, help="artifact (or checkpoint) folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", help="a text (repeatable)")
    source.add_argument("--input", type=Path, help="file of texts; default: standard input")
    parser.add_argument(
        "--field", help="read JSON lines and take this key as the text (of a .jsonl file: text)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=".npy or .jsonl; default: JSON lines on stdout (a key `embedding` is replaced)",
    )
    parser.add_argument("--instruction", help="NV-Embed's task instruction (for queries)")
    parser.add_argument("--prompt-name", help="one of the artifact's prompts")
    parser.add_argument(
        "--runtime", default="auto", help="auto, onnx, torch, tensorrt, ... (%(default)s)"
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, tensorrt; several: cuda:0,cuda:1 (default: what is there)",
    )
    parser.add_argument(
        "--batch-size", type=cli.positive, help="texts a batch (default: by tokens)"
    )
    parser.add_argument("--max-length", type=cli.positive, help="cut texts after so many tokens")
    parser.add_argument("--threads", type=cli.positive, help="processor threads")
    parser.add_argument("--truncate-dim", type=cli.positive, help="keep the first N dimensions")
    cli.add_traceback(parser)
    parser.set_defaults(command=encode)


def encode(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.runtimes import load_encoder
    from nvembed_deploy.runtimes.protocol import RuntimeOptions

    _check_options(args)
    if args.field is None and args.input is not None and args.input.suffix == ".jsonl":
        args.field = "text"
    total = _count(args)
    if total == 0:
        raise InputError(f"{args.input} holds no text", "give one text a line, or --text")
    options = RuntimeOptions(device=args.device, threads=args.threads)
    with load_encoder(args.artifact, args.runtime, options=options) as encoder:
        records, read = _written_and_read(args)
        windows = encoder.encode_stream(
            (record["text" if args.field is None else args.field] for record in read),
            instruction=args.instruction,
            prompt_name=args.prompt_name,
            batch_size=args.batch_size,
            truncate_dim=args.truncate_dim,
            max_length=args.max_length,
            show_progress_bar=sys.stderr.isatty(),
            total=total,
        )
        _write(args.out, records, windows)


def _written_and_read(args: argparse.Namespace) -> tuple[Iterator[Record], Iterator[Record]]:
    """Return the records to write beside their rows, and to read; none to write for .npy.

    What only one of two had taken would be kept for the other.
    """
    if args.out is not None and args.out.suffix == ".npy":
        return iter(()), _records(args)
    written, read = tee(_records(args))
    return written, read


def _count(args: argparse.Namespace) -> int | None:
    """Return the number of texts, each line of a file checked; None where they come by a pipe."""
    return None if args.input is None and not args.text else sum(1 for _ in _records(args))


def _check_options(args: argparse.Namespace) -> None:
    """Refuse, before anything is computed, what could not be written in the end."""
    if args.text and args.field:
        raise InputError("--field does not go with --text", "leave out one of them")
    out: Path | None = args.out
    if out is None:
        return
    if out.suffix not in {".npy", ".jsonl"}:
        raise InputError(f"--out {out} ends in {out.suffix!r}", "end it in .npy or .jsonl")
    cli.check_out("--out", out)
    if args.input is not None and out.exists() and args.input.exists() and out.samefile(args.input):
        raise InputError(f"--out {out} is the input itself", "choose another name")


def _source(args: argparse.Namespace) -> str:
    return str(args.input or "standard input")


def _records(args: argparse.Namespace) -> Iterator[Record]:
    if args.text:
        yield from ({"text": text} for text in args.text)
        return
    for number, line in enumerate(_lines(args.input), 1):
        where = f"{_source(args)} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where} is not UTF-8: {error}", "convert it: iconv -f latin1 -t utf-8"
            ) from error
        if args.field is None:
            yield {"text": text.rstrip("\r\n")}
        elif text.strip():
            yield _record(text, args.field, where)


def _lines(path: Path | None) -> Iterator[bytes]:
    if path is not None and not path.is_file():
        fix = "give a text or JSONL file; what comes by a pipe goes to standard input"
        raise InputError(f"--input {path} is not a file", fix)
    if path is None and sys.stdin is None:  # closed by who started this
        return
    with nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as file:
        yield from file


def _record(line: str, field: str, where: str) -> Record:
    from nvembed_deploy.text import fault_of

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}", "correct that line") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise InputError(f"{where} is a JSON {kind}", "each line must be a JSON object")
    if field not in record:
        raise InputError(f"{where} has no key {field!r}", f"its keys: {sorted(record)[:10]}")
    if not isinstance(record[field], str):
        raise InputError(
            f"{where}: {field!r} is {record[field]!r}, expected a string", "correct it"
        )
    fault = fault_of(record[field])
    if fault is not None:
        raise InputError(f"{where}: {field!r} {fault}", "correct it")
    return record


def _write(out: Path | None, records: Iterator[Record], windows: Windows) -> None:
    if out is None:
        _refuse_none(_say(records, windows))
        return
    from nvembed_deploy.commands.embedding_file import write_jsonl, write_npy

    temporary = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if out.suffix == ".npy":
            num_rows, width = write_npy(temporary, windows)
        else:
            num_rows, width = write_jsonl(temporary, records, windows)
        _refuse_none(num_rows)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    cli.say(f"wrote {out}: {num_rows} embeddings of {width} dimensions")


def _say(records: Iterator[Record], windows: Windows) -> int:
    from nvembed_deploy.commands.embedding_file import json_lines

    encoding, num_rows = getattr(sys.stdout, "encoding", None) or "", 0  # stdout may be closed
    to_ascii = encoding.lower() not in {"utf-8", "utf8"}
    for window_ND in windows:
        num_rows += len(window_ND)
        for line in json_lines(records, window_ND, to_ascii=to_ascii):
            cli.say(line)
    return num_rows


def _refuse_none(num_rows: int) -> None:
    if num_rows == 0:
        raise InputError("standard input holds no text", "give one text a line, or --text")
