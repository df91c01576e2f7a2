"""This file owns NVIDIA's own quantiser on the model, calibration texts and held texts of ours.

modelopt's recipes round the torch model in place (fake quantisation), so this is what their graphs
would compute at best. Run: pip install nvidia-modelopt, then
python -m benchmarks.modelopt_side_by_side build/demo/checkpoint --json OUT
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantization import compare, held_texts

CONFIGS = (
    "INT8_WEIGHT_ONLY_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "FP8_DEFAULT_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT4_AWQ_CFG",
)


def main() -> int:
    """Quantise, encode, compare, print; each recipe in a process of its own, for its memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--only", action="append", choices=CONFIGS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    exact_ND, _ = _apart(args.checkpoint, None, args.texts)
    for config in args.only or CONFIGS:
        got_ND, facts = _apart(args.checkpoint, config, args.texts)
        rows.append({"recipe": config, **compare(got_ND, exact_ND), **facts})
        print(json.dumps(rows[-1]), flush=True)  # noqa: T201
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in ("nvidia-modelopt", "torch")},
        "texts": args.texts,
        "rows": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _apart(
    checkpoint: Path, config: str | None, num_texts: int
) -> tuple[np.ndarray, dict[str, Any]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (checkpoint, config, num_texts))


def measure(
    checkpoint: Path, config: str | None, num_texts: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rows of the held texts, the time of quantising and the memory of all of it."""
    import torch

    from nvembed_deploy.export.calibration_texts import Calibration
    from nvembed_deploy.model.nvembed import NVEmbed
    from nvembed_deploy.runtimes import RuntimeOptions, load_encoder

    options = RuntimeOptions(device="cpu")
    with load_encoder(checkpoint, "reference", options=options) as encoder:
        model: NVEmbed = encoder.runtime._model  # type: ignore[attr-defined]
        batches = Calibration().batches(encoder.tokenizer)

        def calibrate(module: torch.nn.Module) -> None:
            with torch.inference_mode():
                for b in batches:
                    arrays = (b.input_ids_BS, b.attention_mask_BS, b.pool_mask_BS)
                    module(*(torch.from_numpy(array) for array in arrays))

        started = time.monotonic()
        if config is not None:
            import modelopt.torch.quantization as mtq

            mtq.quantize(model, getattr(mtq, config), calibrate)
        seconds = time.monotonic() - started
        rows_ND: np.ndarray = encoder.encode(held_texts(num_texts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rows_ND, {"seconds": round(seconds, 1), "peak_mib": round(peak / 1024)}


if __name__ == "__main__":
    sys.exit(main())
