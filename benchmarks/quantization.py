"""This file owns the table of quantised recipes: cosine, overlap, size and speed beside float32.

Each recipe is exported from one checkpoint by the command line's own path and encodes held texts
with ONNX Runtime on the CPU. Rows of an earlier result that are not measured again stay.
Run: python -m benchmarks.quantization build/demo/checkpoint
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from nvembed_deploy import load_encoder
from nvembed_deploy.export.calibration_texts import BUILT_IN, read_texts
from nvembed_deploy.export.formats import Activations, Rounding
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.spec import Precision

_FP16 = ExportRecipe()
_INT8, _FP8, _INT8_WEIGHT, _INT4_WEIGHT = (
    replace(_FP16, scheme=name) for name in ("int8", "fp8", "int8-weight", "int4-weight")
)
_INT8_CPU = load_recipe(None, {"precision": "int8-cpu"})
RECIPES = {
    "fp16": _FP16,
    "int8-weight, nearest": replace(_INT8_WEIGHT, rounding=Rounding.NEAREST),
    "int8-weight": _INT8_WEIGHT,
    "int8-weight, nearest, not rotated": replace(
        _INT8_WEIGHT, rounding=Rounding.NEAREST, rotate=False
    ),
    "int8-weight, not rotated": replace(_INT8_WEIGHT, rotate=False),
    "int8, static ranges, not rotated": replace(
        _INT8, activations=Activations.STATIC, rotate=False
    ),
    "int8, not rotated": replace(_INT8, rotate=False),
    "int8, nearest": replace(_INT8, rounding=Rounding.NEAREST),
    "int8, a range per token": replace(_INT8, activations=Activations.ROW),
    "int8": _INT8,
    "int8-cpu, nearest": replace(_INT8_CPU, rounding=Rounding.NEAREST),
    "int8-cpu, a range per token": replace(_INT8_CPU, activations=Activations.ROW),
    "int8-cpu": _INT8_CPU,
    "fp8, static ranges": replace(_FP8, activations=Activations.STATIC),
    "fp8, nearest": replace(_FP8, rounding=Rounding.NEAREST),
    "fp8, rotated": replace(_FP8, rotate=True),
    "fp8, no direction twice": replace(_FP8, fp8_rank=0),
    "fp8, 16 directions twice": replace(_FP8, fp8_rank=16),
    "fp8": _FP8,
    "fp8, 64 directions twice": replace(_FP8, fp8_rank=64),
    "fp8, attention too": replace(_FP8, fp8_attention=True),
    "fp8, a tenth kept": replace(_FP8, keep_share=0.1),
    "fp8, no direction twice, a tenth kept": replace(_FP8, fp8_rank=0, keep_share=0.1),
    "int4-weight, nearest": replace(_INT4_WEIGHT, rounding=Rounding.NEAREST),
    "int4-weight": _INT4_WEIGHT,
    "int4-weight, a tenth in 8 bit": replace(_INT4_WEIGHT, keep_share=0.1),
    "int4-weight, half in 8 bit": replace(_INT4_WEIGHT, keep_share=0.5),
    "int4-weight, three quarters in 8 bit": replace(_INT4_WEIGHT, keep_share=0.75),
}
_CHARACTERS = 500
_NEIGHBOURS = 10
_PROBE = 40
"""So many characters of a calibration text must not begin a held one."""


def main() -> int:
    """Export, encode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--only", action="append", help="a recipe's name (repeatable)")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    texts = held_texts(args.texts)
    words = held_words(texts)
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as folder:
        exact_ND, _ = _encode(
            args.checkpoint,
            replace(_FP16, precision=Precision.FP32),
            texts + words,
            Path(folder) / "fp32",
        )
        rows = earlier_rows(args.json)
        for name in args.only or RECIPES:
            got_ND, facts = _encode(
                args.checkpoint, RECIPES[name], texts + words, Path(folder) / name
            )
            short = compare(got_ND[len(texts) :], exact_ND[len(texts) :])
            rows[name] = {
                "date": time.strftime("%Y-%m-%d"),
                **compare(got_ND[: len(texts)], exact_ND[: len(texts)]),
                **{f"words_{key}": short[key] for key in ("mean_cosine", "min_cosine")},
                **facts,
            }
            print(json.dumps({"recipe": name, **rows[name]}), flush=True)  # noqa: T201
    result = {
        "checkpoint": args.checkpoint.name,
        "texts": len(texts),
        "words": len(words),
        "versions": {name: metadata.version(name) for name in ("numpy", "onnxruntime", "torch")},
        "rows": {name: rows[name] for name in RECIPES if name in rows},
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def earlier_rows(path: Path | None) -> dict[str, dict[str, float | str]]:
    """Return the rows of the result that is there."""
    if path is None or not path.exists():
        return {}
    rows: dict[str, dict[str, float | str]] = json.loads(path.read_text("utf-8"))["rows"]
    return rows


def held_texts(count: int) -> list[str]:
    """Return documentation that no calibration text begins, evenly by length."""
    from tests.real.texts import documentation

    seen = [text.text[:_PROBE] for text in read_texts(BUILT_IN)]
    texts = [text[:_CHARACTERS] for text in documentation(3 * count)]
    held = [text for text in dict.fromkeys(texts) if not any(probe in text for probe in seen)]
    step = (len(held) - 1) / (count - 1)
    return [held[round(i * step)] for i in range(count)]


def held_words(texts: Sequence[str]) -> list[str]:
    """Return one, two or three words from within every other text; no calibration text begins so.

    A model makes states of so few tokens that it makes of no longer text.
    """
    seen = [text.text for text in read_texts(BUILT_IN)]
    found = []
    for number, text in enumerate(texts[::2]):
        words = text.split()
        start = len(words) // 2
        found.append(" ".join(words[start : start + 1 + number % 3]))
    return [
        words for words in dict.fromkeys(found) if not any(text.startswith(words) for text in seen)
    ]


def _encode(
    checkpoint: Path, recipe: ExportRecipe, texts: list[str], out: Path
) -> tuple[np.ndarray, dict[str, float]]:
    started = time.monotonic()
    manifest = run_export(plan_export(checkpoint, recipe), out)
    exported = time.monotonic()
    with load_encoder(out, "onnx", device="cpu") as encoder:
        num_tokens = sum(len(tokens.ids) for tokens in encoder.tokenizer.tokenize(texts))
        encoder.encode(texts[:8])
        ready = time.monotonic()
        embedding_ND = encoder.encode(texts)
        seconds = time.monotonic() - ready
    return embedding_ND, {
        "mib": round(manifest.weights.bytes / 2**20, 1),
        "export_seconds": round(exported - started, 1),
        "tokens_per_second": round(num_tokens / seconds),
    }


def compare(got_ND: np.ndarray, exact_ND: np.ndarray) -> dict[str, float]:
    """Return mean and min cosine, rank correlation of all pairs, and overlap of neighbours."""
    got, exact = (_unit(rows) for rows in (got_ND, exact_ND))
    cosine_N = 1 - ((got - exact) ** 2).sum(1) / 2
    pairs = np.triu_indices(len(got), 1)
    similar, expected = ((rows @ rows.T) for rows in (got, exact))
    return {
        "mean_cosine": round(float(cosine_N.mean()), 6),
        "min_cosine": round(float(cosine_N.min()), 5),
        "spearman": round(_spearman(similar[pairs], expected[pairs]), 5),
        "top10_overlap": round(_overlap(similar, expected), 4),
    }


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    wide: np.ndarray = rows_ND.astype(np.float64)
    unit: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _overlap(similar_NN: np.ndarray, expected_NN: np.ndarray) -> float:
    tops = []
    for similarity in (similar_NN, expected_NN):
        others = similarity - 2 * np.eye(len(similarity)) * np.abs(similarity).max()
        tops.append(np.argsort(-others, axis=1)[:, :_NEIGHBOURS])
    shared = [len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]
    return float(np.mean(shared)) / _NEIGHBOURS


if __name__ == "__main__":
    sys.exit(main())
