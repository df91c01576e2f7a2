"""This file owns `nvembed-deploy encode`: lines or JSONL in, .npy or JSONL out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nvembed_deploy import cli
from nvembed_deploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_EXAMPLES = """examples:
  nvembed-deploy encode ./artifact --text "hello"
  nvembed-deploy encode ./artifact --input passages.txt --out passages.npy
  nvembed-deploy encode ./artifact --input queries.jsonl --field text --out queries.jsonl \\
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
    parser.add_argument("--field", help="read JSON lines and take this key as the text")
    parser.add_argument("--out", type=Path, help=".npy or .jsonl; default: JSON lines on stdout")
    parser.add_argument("--instruction", help="NV-Embed's task instruction (for queries)")
    parser.add_argument("--prompt-name", help="one of the artifact's prompts")
    parser.add_argument("--runtime", default="auto", help="auto, onnx or torch (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, tensorrt (default: what is there)")
    parser.add_argument("--batch-size", type=int, help="texts a batch (default: by tokens)")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--truncate-dim", type=int, help="keep the first N dimensions")
    cli.add_traceback(parser)
    parser.set_defaults(command=encode)


def encode(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.runtimes import load_encoder
    from nvembed_deploy.runtimes.protocol import RuntimeOptions

    texts = list(_texts(args))
    options = RuntimeOptions(device=args.device, threads=args.threads)
    with load_encoder(args.artifact, args.runtime, options=options) as encoder:
        embedding_ND = encoder.encode(
            texts,
            instruction=args.instruction,
            prompt_name=args.prompt_name,
            batch_size=args.batch_size,
            truncate_dim=args.truncate_dim,
            show_progress_bar=sys.stderr.isatty(),
        )
    _write(args, texts, embedding_ND)


def _texts(args: argparse.Namespace) -> Iterator[str]:
    if args.text:
        yield from args.text
        return
    with _open_input(args.input) as file:
        for number, line in enumerate(file, 1):
            if args.field is None:
                yield line.rstrip("\r\n")
            elif line.strip():
                yield _field(line, number, args)


@contextmanager
def _open_input(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdin
        return
    if not path.is_file():
        raise InputError(f"--input {path} is not a file", "give a text or JSONL file")
    try:
        with path.open(encoding="utf-8") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: {error}", f"convert it: iconv -t utf-8 {path}"
        ) from error


def _field(line: str, number: int, args: argparse.Namespace) -> str:
    where = f"{args.input or 'standard input'} line {number}"
    try:
        record = json.loads(line)
        text = record[args.field]
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}", "correct that line") from error
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{where} has no key {args.field!r}",
            f"its keys: {sorted(record)[:10]}"
            if isinstance(record, dict)
            else "each line must be a JSON object",
        ) from error
    if not isinstance(text, str):
        raise InputError(f"{where}: {args.field!r} is {text!r}, expected a string", "correct it")
    return text


def _write(args: argparse.Namespace, texts: list[str], embedding_ND: np.ndarray) -> None:
    import numpy as np

    if args.out is None:
        for text, row in zip(texts, embedding_ND, strict=True):
            cli.say(_json_line(text, row))
        return
    temporary = args.out.with_name(f".{args.out.name}.partial-{os.getpid()}")
    try:
        if args.out.suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, embedding_ND)
        else:
            lines = (_json_line(t, row) + "\n" for t, row in zip(texts, embedding_ND, strict=True))
            with temporary.open("w", encoding="utf-8") as text_file:
                text_file.writelines(lines)
        temporary.replace(args.out)
    finally:
        temporary.unlink(missing_ok=True)
    rows, width = embedding_ND.shape
    cli.say(f"wrote {args.out}: {rows} embeddings of {width} dimensions")


def _json_line(text: str, row: np.ndarray) -> str:
    values = [round(float(x), 8) for x in row]
    return json.dumps({"text": text, "embedding": values}, ensure_ascii=False)
