"""This file owns a checkpoint of NV-Embed's full width without NV-Embed's weights.

It has the released layout and random float16 values of plausible size; 32 layers are 15.7 GB.
Run: python -m benchmarks.random_checkpoint OUT --layers 32
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.lean_export import of_layers, write_random_checkpoint
from nvembed_deploy.spec import ModelSpec


def main(argv: list[str] | None = None) -> int:
    """Write it; it appears whole, or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args(argv)
    partial = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_random_checkpoint(partial, of_layers(ModelSpec(), args.layers))
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of a full disk, it is what fills it
    return 0


if __name__ == "__main__":
    sys.exit(main())
