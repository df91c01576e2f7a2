"""This file owns the proof that a long run needs no more memory than a short one.

It embeds short texts, all different, with `Encoder.encode_stream` and notes resident memory and
speed on the way. Without an artifact it takes the tests' tiny model: then much of the time is the
host's (tokens, batches, copies), which is what there is to see in a million texts.
Run: python -m benchmarks.many_texts --texts 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from nvembed_deploy import load_encoder

_MIB = 1 << 20
_WORDS = 8
_MARKS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Stream, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, nargs="?", help="default: the tests' tiny model")
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = _measure(args.artifact or _tiny_artifact(Path(folder)), args.texts)
    print(json.dumps(result, indent=2))  # noqa: T201
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _tiny_artifact(folder: Path) -> Path:
    from nvembed_deploy.export.pipeline import run_export
    from nvembed_deploy.export.plan import plan_export
    from nvembed_deploy.export.recipe import load_recipe
    from tests.factories import write_released

    checkpoint = write_released(folder / "checkpoint")
    recipe = load_recipe(None, {"precision": "fp32"})
    run_export(plan_export(checkpoint, recipe), folder / "artifact")
    return folder / "artifact"


def _texts(count: int) -> Iterator[str]:
    generator = np.random.default_rng(0)
    words = ["return", "value", "self", "index", "class", "import", "error", "path", "none", "text"]
    for index in range(count):
        chosen = generator.integers(len(words), size=_WORDS)
        yield f"{index} " + " ".join(words[word] for word in chosen)


def _measure(artifact: Path, num_texts: int) -> dict[str, object]:
    points, done, started = [], 0, time.monotonic()
    with load_encoder(artifact, "onnx", device="cpu") as encoder:
        for rows_ND in encoder.encode_stream(_texts(num_texts)):
            done += len(rows_ND)
            if done * _MARKS // num_texts > len(points):
                seconds = time.monotonic() - started
                points.append({"texts": done, "rss_mib": _rss_mib(), "seconds": round(seconds, 1)})
    versions = {name: metadata.version(name) for name in ("numpy", "onnxruntime", "tokenizers")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "versions": versions,
        "texts": done,
        "texts_per_second": round(done / (time.monotonic() - started)),
        "rss_growth_mib": points[-1]["rss_mib"] - points[0]["rss_mib"],
        "points": points,
    }


def _rss_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // _MIB


if __name__ == "__main__":
    sys.exit(main())
