"""This file owns what one engine is worth on one machine: its rows beside a reference's, its speed.

Batches are random token ids, the same for every run, so that no tokenizer is in the way and a
random checkpoint serves as well as a trained one. A reference run saves its rows for the others.
Run: python -m benchmarks.engine_speed ARTIFACT --runtime tensorrt --reference rows.npy
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy import load_encoder
from nvembed_deploy.artifact import is_artifact, read_manifest
from nvembed_deploy.installed import installed
from nvembed_deploy.runtimes import Encoder, RuntimeOptions
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch, Tokens, collate

SHAPES = ((1, 32), (1, 128), (1, 512), (8, 128), (32, 128), (64, 128), (16, 512), (4, 2048))
"""Texts and tokens of the timed batches: one query, a few, passages together, long documents."""
LENGTHS = (5, 17, 40, 64, 100, 128, 250, 400, 512, 700, 1024, 2000)
"""Tokens of the compared texts."""
_PACKAGES = ("tensorrt", "tensorrt-rtx-cu13", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")
_FIRST_ID = 3
"""Ids below are BOS, EOS and unknown."""
_WARM_UP_RUNS, _WARM_UP_SECONDS = 4, (3.0, 30.0)
"""Not timed: the third run replays a recorded CUDA graph, and TensorRT for RTX goes on compiling
kernels for the shape that it meets, so that speed has to settle; least and most."""
_SETTLED = 0.97
_LEAST_RUNS = 5
"""Timed, however long they take."""


def main() -> int:
    """Load, compare, time, print."""
    args = parse()
    dtype = Precision(args.dtype) if args.dtype else None
    options = RuntimeOptions(device=args.device, dtype=dtype)
    started = time.monotonic()
    with load_encoder(args.source, args.runtime, options=options) as encoder:
        record = Record(args.json, about(args.source, encoder))
        record.add(load_seconds=round(time.monotonic() - started, 1))
        rows_ND = embed_all(encoder)
        if args.save:
            with whole(args.save) as partial, partial.open("wb") as file:
                np.save(file, rows_ND)
        record.add(agreement=compare(rows_ND, args.reference) if args.reference else None)
        speed: list[dict[str, float]] = []
        for shape in shapes_for(encoder) if args.repeats else ():
            speed.append(time_shape(encoder, shape, args.repeats, args.seconds))
            record.add(speed=speed)
        record.add(speed=speed, gpu_memory_mib=gpu_memory_mib())
    record.end()
    print(json.dumps(record.result, indent=2))  # noqa: T201
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="artifact, or checkpoint with --runtime torch")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=[p.value for p in Precision], help="of torch")
    parser.add_argument("--reference", type=Path, help="rows to compare with")
    parser.add_argument("--save", type=Path, help="write the rows here")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs; 0 times nothing")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="of timed runs of one shape, at most"
    )
    parser.add_argument("--json", type=Path, help="write the result here, once it is whole")
    return parser.parse_args()


class Record:
    """A result: what is measured lies in NAME.partial.json at once, in NAME.json at the end."""

    def __init__(self, path: Path | None, result: dict[str, Any]) -> None:
        """Begin with what is known before anything is measured."""
        self.result, self._path = result, path
        self._partial = path and path.with_suffix(f".partial{path.suffix}")

    def add(self, **facts: Any) -> None:  # noqa: ANN401 - JSON
        """Take something measured, and save it."""
        self.result |= facts
        if self._partial:
            with whole(self._partial) as file:
                file.write_text(json.dumps(self.result, indent=2) + "\n", encoding="utf-8")

    def end(self) -> None:
        """Give the file its name: all is in it."""
        if self._partial and self._path:
            self._partial.replace(self._path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` that becomes it when the block succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def about(source: Path, encoder: Encoder) -> dict[str, Any]:
    """Return what ran where."""
    manifest = read_manifest(source) if is_artifact(source) else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": installed(_PACKAGES),
        "runtime": encoder.runtime.name,
        "device": encoder.runtime.device,
        "layers": encoder.spec.backbone.num_layers,
        "precision": manifest.recipe.get("precision") or manifest.precision if manifest else None,
        "engines": {n: r.summary for n, r in manifest.engines.items()} if manifest else {},
    }


def random_batch(encoder: Encoder, lengths: list[int], seed: int) -> Batch:
    """Return texts of given lengths, of random ids; an eighth of each is an instruction."""
    spec, generator = encoder.spec, np.random.default_rng(seed)
    tokens = []
    for length in lengths:
        ids = generator.integers(_FIRST_ID, spec.backbone.vocab_size, length, dtype=np.int64)
        ids[0], ids[-1] = spec.text.bos_id, spec.text.eos_id
        tokens.append(Tokens(ids, num_masked=length // 8))
    return collate(tokens, spec.text.pad_id)


def embed_all(encoder: Encoder) -> NDArray[np.float32]:
    """Return the rows [N, D] of the compared texts: alone, and again all short ones together."""
    longest = encoder.max_seq_length
    lengths = [length for length in LENGTHS if length <= longest]
    alone = [encoder.runtime.embed(random_batch(encoder, [n], seed=n)) for n in lengths]
    short = [length for length in lengths if length <= min(512, longest)]
    together = encoder.runtime.embed(random_batch(encoder, short, seed=0))
    return np.concatenate([*alone, together])


def compare(rows_ND: NDArray[np.float32], reference: Path) -> dict[str, float]:
    """Return how near the rows are to the reference's: cosines, and the largest difference."""
    expected_ND = np.load(reference)
    lengths = np.linalg.norm(rows_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
    cosine_N = (rows_ND * expected_ND).sum(1) / lengths
    return {
        "texts": len(rows_ND),
        "cosine_min": float(cosine_N.min()),
        "cosine_mean": float(cosine_N.mean()),
        "largest_difference": float(np.abs(rows_ND - expected_ND).max()),
    }


def shapes_for(encoder: Encoder) -> Iterator[tuple[int, int]]:
    """Yield the shapes that the model takes."""
    yield from (shape for shape in SHAPES if shape[1] <= encoder.max_seq_length)


def time_shape(
    encoder: Encoder, shape: tuple[int, int], repeats: int, most_seconds: float
) -> dict[str, float]:
    """Return latency and throughput of one batch shape, host to host."""
    batch = random_batch(encoder, [shape[1]] * shape[0], seed=1)
    warm_up(lambda: encoder.runtime.embed(batch))
    seconds = timed(lambda: encoder.runtime.embed(batch), repeats, most_seconds)
    p50, p90, p99 = (1000 * np.percentile(seconds, part) for part in (50, 90, 99))
    return {
        "texts": shape[0],
        "tokens": shape[1],
        "runs": len(seconds),
        "p50_ms": round(p50, 3),
        "p90_ms": round(p90, 3),
        "p99_ms": round(p99, 3),
        "texts_per_second": round(shape[0] / (p50 / 1000), 1),
        "tokens_per_second": round(shape[0] * shape[1] / (p50 / 1000)),
    }


def warm_up(run: Callable[[], object]) -> None:
    """Run until it gets no faster."""
    least, most = _WARM_UP_SECONDS
    started, last = time.monotonic(), float("inf")
    while True:
        median = float(np.median(timed(run, _WARM_UP_RUNS)))
        taken = time.monotonic() - started
        if (taken > least and median > _SETTLED * last) or taken > most:
            return
        last = median


def timed(
    run: Callable[[], object], repeats: int, most_seconds: float = float("inf")
) -> NDArray[np.float64]:
    """Return the seconds of each run: of fewer, but some, where they take too long together."""
    seconds, began = list[float](), time.perf_counter()
    while len(seconds) < repeats:
        started = time.perf_counter()
        run()
        ended = time.perf_counter()
        seconds.append(ended - started)
        if ended - began > most_seconds and len(seconds) >= _LEAST_RUNS:
            break
    return np.array(seconds)


def gpu_memory_mib() -> int | None:
    """Return the memory of the GPUs that is taken, by whomever.

    None without a driver, and where it does not say: a GPU without memory of its own (GB10, in DGX
    Spark) has [N/A].
    """
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    numbers = done.stdout.split()
    return sum(map(int, numbers)) if all(n.isdecimal() for n in numbers) and numbers else None


if __name__ == "__main__":
    sys.exit(main())
