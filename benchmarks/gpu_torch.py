"""This file owns what the torch runtime is worth at NV-Embed's full size: correct first, then fast.

Weights are random and made in place: a fresh GPU host needs torch, transformers and this
repository, and downloads nothing. Compared are: the reference (padded, as trained), the packed
model in bfloat16, with FP8 products of weights rounded to nearest, and of what an fp8 export stores
(directions rounded twice), each plain and compiled, and the way of the model's card (padded batches
of 32 in the given order, float16 autocast, the latents projected again for each text; its weights
are float16 already, which flatters it).

Run: python -m benchmarks.gpu_torch --json benchmarks/results/gpu-torch.json
Anywhere, to see that it runs: python -m benchmarks.gpu_torch --device cpu --tiny
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.lean_export import of_layers
from benchmarks.random_model import TINY, RandomModel
from nvembed_deploy.bench.competitors.plain_forward import PerTextLatentPooler
from nvembed_deploy.bench.flops import model_flops
from nvembed_deploy.errors import is_out_of_memory
from nvembed_deploy.export.calibration_texts import BUILT_IN, read_texts
from nvembed_deploy.model.nvembed import NVEmbed
from nvembed_deploy.model.packed.fp8_product import NO_ROW_SCALES, row_scales
from nvembed_deploy.runtimes.batching import BatchLimits, plan_batches
from nvembed_deploy.runtimes.reference_runtime import ReferenceRuntime
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.text import Batch

COMPARED = (3, 17, 40, 64, 100, 128, 250, 400, 512, 1000)
"""Tokens of the texts whose rows are compared."""
CARD_BATCH = 32
CARD = "model card, fp16"
SIDES = (
    "packed, bf16, compiled",
    "packed, fp8, compiled",
    "packed, fp8 artifact, compiled",
    CARD,
    "packed, bf16",
    "packed, fp8",
    "packed, fp8 artifact",
)
"""The most wanted first: each loads the model anew, a minute or so, and time may end."""
_LEAST_RUNS = 3
Embed = Callable[[Batch], NDArray[np.float32]]


@dataclass(frozen=True)
class Run(RandomModel):
    """What is measured, and for how long."""

    seconds: float

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, step: Callable[[], object]) -> float:
        """Return the median time of a step, warmed up."""
        for _ in range(_LEAST_RUNS):
            step()
        times: list[float] = []
        ends = time.perf_counter() + self.seconds
        while len(times) < _LEAST_RUNS or time.perf_counter() < ends:
            self.synchronize()
            started = time.perf_counter()
            step()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tiny", action="store_true", help="a model of 64 hidden values")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure (%(default)s)")
    parser.add_argument("--only", action="append", choices=SIDES, help="a side (repeat)")
    parser.add_argument("--json", type=Path, help="written anew after each side")
    args = parser.parse_args(argv)
    base = TINY if args.tiny else ModelSpec()
    layers = 2 if args.tiny else args.layers
    spec = of_layers(base, layers)
    run = Run(spec, torch.device(args.device), args.seconds)
    reference, expected = reference_rows(run)
    result = {**about(run), "reference": reference, "limits": limits(run), "sides": {}}
    for name, found in measure(run, args.only or SIDES, expected):
        result["sides"][name] = found
        result["fp8_shapes_without_row_scales"] = sorted(NO_ROW_SCALES)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))  # noqa: T201
    return int(any("error" in found for found in result["sides"].values()))


def about(run: Run) -> dict[str, Any]:
    """Return what ran where."""
    is_gpu = run.device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(run.device) if is_gpu else platform.processor(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "fp8_row_scales": row_scales(run.device, torch.bfloat16).value if is_gpu else None,
        "layers": run.spec.backbone.num_layers,
        "hidden": run.spec.backbone.hidden_size,
    }


def limits(run: Run) -> dict[str, float]:
    """Return what the machine can do now: FLOP/s of the largest product, bytes/s of reading."""
    hidden, wide = run.spec.backbone.hidden_size, run.spec.backbone.intermediate_size
    states = torch.randn(8192, hidden, device=run.device).bfloat16()
    weight = torch.randn(wide, hidden, device=run.device).bfloat16()
    product = run.seconds_of(lambda: torch.nn.functional.linear(states, weight))
    large = torch.empty(1 << (31 if run.device.type == "cuda" else 24), dtype=torch.uint8)
    source = large.to(run.device)
    target = torch.empty_like(source)
    copy = run.seconds_of(lambda: target.copy_(source))
    return {
        "bf16_tflops": 2e-12 * 8192 * hidden * wide / product,
        "gigabytes_per_second": 2e-9 * len(large) / copy,
    }


def reference_rows(run: Run) -> tuple[str, NDArray[np.float32]]:
    """Return the padded model's format and rows; bfloat16 where float32 (31 GB) does not fit."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = padded_rows(run, dtype)
        give_back()  # not before its frames are gone
        if rows is not None:
            return str(dtype).removeprefix("torch."), rows
    raise SystemExit("error: the model does not fit this GPU in bfloat16\nfix: give --layers 16")


def padded_rows(run: Run, dtype: torch.dtype) -> NDArray[np.float32] | None:
    """Return what the padded model gives; None where there is too little memory for it."""
    try:
        reference = ReferenceRuntime(run.model(dtype), run.device)
        try:
            return embed_compared(run, reference.embed)
        finally:
            reference.close()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def measure(
    run: Run, names: Sequence[str], expected: NDArray[np.float32]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure one side after the other, so that each has the GPU to itself.

    What one side cannot do is its result, and the others go on.
    """
    for name in names:
        if "compiled" in name and run.device.type != "cuda":
            continue
        try:
            is_card = name == CARD
            yield name, card_side(run, expected) if is_card else packed_side(run, name, expected)
        except Exception as error:
            yield name, {"error": f"{type(error).__name__}: {error}"}
        give_back()


def card_side(run: Run, expected: NDArray[np.float32]) -> dict[str, Any]:
    """Measure the way of the model's card."""
    card = run.model(torch.float16 if run.device.type == "cuda" else torch.float32)
    card.pooler.__class__ = PerTextLatentPooler
    return side(run, card_embed(run, card), CARD_BATCH, expected)


def packed_side(run: Run, name: str, expected: NDArray[np.float32]) -> dict[str, Any]:
    """Measure the packed model."""
    runtime = run.packed(name)
    try:
        return side(run, runtime.embed, None, expected)
    finally:
        runtime.close()


def give_back() -> None:
    """Free what a side held, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def side(
    run: Run, embed: Embed, batch_size: int | None, expected: NDArray[np.float32]
) -> dict[str, Any]:
    """Compare one side with the reference, then time it."""
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    rows = embed_compared(run, embed)
    cosine_N = (rows * expected).sum(1)
    found: dict[str, Any] = {
        "cosine_min": float(cosine_N.min()),
        "cosine_mean": float(cosine_N.mean()),
    }
    for name, lengths in {"512 tokens": [512] * 64, "real mix": real_lengths(run)}.items():
        groups = batches(lengths, batch_size)
        work = [run.batch(group) for group in groups]
        seconds = run.seconds_of(lambda work=work: [embed(batch) for batch in work])  # type: ignore[misc]
        found[name] = {
            "tokens_per_second": round(sum(lengths) / seconds),
            "tflops": 1e-12 * model_flops(run.spec, lengths) / seconds,
        }
    query = run.batch([32])
    found["one query of 32 tokens, ms"] = 1e3 * run.seconds_of(lambda: embed(query))
    if run.device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(run.device) / 2**30
    return found


def embed_compared(run: Run, embed: Embed) -> NDArray[np.float32]:
    """Return the rows of the compared texts, all together and each alone.

    Compiled kernels are made for the first batch: for few tokens, one reads its input twice.
    """
    together = embed(run.batch(COMPARED))
    return np.concatenate([together, *(embed(run.batch([length])) for length in COMPARED)])


def batches(lengths: Sequence[int], batch_size: int | None) -> list[list[int]]:
    """Group texts as the packed runtime does, or in the given order by `batch_size`."""
    if batch_size is not None:
        return [list(lengths[i : i + batch_size]) for i in range(0, len(lengths), batch_size)]
    limit = BatchLimits.for_device("cuda", packs=True)
    return [[lengths[i] for i in group] for group in plan_batches(lengths, limit)]


def real_lengths(run: Run) -> list[int]:
    """Return the lengths of 256 built-in texts: a token for four characters, and three."""
    texts = list(read_texts(BUILT_IN))
    order = np.random.default_rng(0).permutation(len(texts))[:256]
    longest = run.spec.text.max_tokens
    return [min(longest, 3 + len(texts[i].instruction + texts[i].text) // 4) for i in order]


def card_embed(run: Run, model: NVEmbed) -> Embed:
    """Run the padded model under autocast, as model cards do."""
    kind, dtype = run.device.type, torch.float16 if run.device.type == "cuda" else torch.bfloat16

    def embed(batch: Batch) -> NDArray[np.float32]:
        arrays = (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
        with torch.inference_mode(), torch.autocast(kind, dtype):
            rows_BD = model(*(torch.from_numpy(array).to(run.device) for array in arrays))
        result: NDArray[np.float32] = rows_BD.float().cpu().numpy()
        return result

    return embed


if __name__ == "__main__":
    sys.exit(main())
