"""This file owns the proof that exporting never holds the model: memory, time and disk.

It writes a random float16 checkpoint of NV-Embed's full width (32 layers are 15.7 GB; --layers 8
is the CI size), then, in the same run and on the same disk, copies and fsyncs as many bytes as the
export writes, and exports it; a quantising precision is calibrated on the built-in texts.
Run: python -m benchmarks.lean_export --layers 8, or --layers 1 --precision int8
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np

import nvembed_deploy
from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.export.formats import SCHEMES
from nvembed_deploy.export.memory import peak_bytes
from nvembed_deploy.export.progress import Advance
from nvembed_deploy.export.recipe import PRECISIONS
from nvembed_deploy.model.names import expected_shapes, released_name
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.tensorwriter import SafetensorsWriter

GIB = 1 << 30
MEMORY_BAR_GIB, CALIBRATED_BAR_GIB = 1.5, 4.0
TIME_BAR = 2.0
DISK_BAR = 1.05
_ADDED = ("o_proj.weight", "down_proj.weight")
"""Linears whose outputs are added to the states, twice a layer."""


def main() -> int:
    """Write, copy, export, print; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--workdir", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--export", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        print(json.dumps(_export(*args.export, args.precision)))  # noqa: T201
        return 0
    workdir = Path(tempfile.mkdtemp(prefix="lean-export-", dir=args.workdir))
    try:
        result = _measure(workdir, args.layers, args.precision)
    finally:
        shutil.rmtree(workdir)
    print(json.dumps(result, indent=2))  # noqa: T201
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(result["bars"].values()) else 1


def _measure(workdir: Path, layers: int, precision: str) -> dict[str, object]:
    spec = of_layers(ModelSpec(), layers)
    checkpoint, out = workdir / "checkpoint", workdir / "artifact"
    checkpoint_bytes = write_random_checkpoint(checkpoint, spec)
    command = [sys.executable, __file__, "--export", str(checkpoint), str(out)]
    command += ["--precision", precision]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    run_seconds = time.monotonic() - started
    steps = json.loads(run.stdout.splitlines()[-1])
    written = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    copy_seconds = _copy_seconds(out / LAYOUT.weights, workdir / "copy")
    export_seconds = steps["weights"]["seconds"] + steps["graph"]["seconds"]
    growth = {
        name: step["peak_bytes"] - steps["imports"]["peak_bytes"] for name, step in steps.items()
    }
    peak, is_calibrated = max(growth.values()), precision in SCHEMES
    bar = CALIBRATED_BAR_GIB if is_calibrated else MEMORY_BAR_GIB
    bars = {
        f"peak <= {bar} GiB above imports": peak <= bar * GIB,
        "disk <= weights + 5%": written <= DISK_BAR * steps["weights"]["total"],
    }
    if not is_calibrated:
        bars["time <= 2 x copy and fsync"] = export_seconds <= TIME_BAR * copy_seconds
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "layers": layers,
        "precision": precision,
        "checkpoint_bytes": checkpoint_bytes,
        "artifact_bytes": written,
        "peak_above_imports_gib": round(peak / GIB, 3),
        "peak_of_writing_gib": round(growth["graph"] / GIB, 3),
        "export_seconds": round(export_seconds, 1),
        "copy_seconds": round(copy_seconds, 1),
        "export_over_copy": round(export_seconds / copy_seconds, 2),
        "whole_export_seconds": round(run_seconds, 1),
        "self_check_seconds": round(steps["self-check"]["seconds"], 1),
        "disk_over_weights": round(written / steps["weights"]["total"], 4),
        "bars": bars,
    }


def _machine() -> dict[str, str | int | None]:
    packages = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers")
    versions: dict[str, str | int | None] = {name: metadata.version(name) for name in packages}
    return {"cpus": os.cpu_count(), "python": platform.python_version(), **versions}


def of_layers(spec: ModelSpec, num_layers: int) -> ModelSpec:
    """Return a model of so many layers."""
    backbone = dataclasses.replace(spec.backbone, num_layers=num_layers)
    return dataclasses.replace(spec, backbone=backbone)


def write_random_checkpoint(folder: Path, spec: ModelSpec, seed: int = 0) -> int:
    """Write a checkpoint in the released layout, float16, with values of plausible size."""
    folder.mkdir()
    pooler, backbone = spec.pooler, spec.backbone
    config = {
        "model_type": "nvembed",
        "text_config": {
            "model_type": "bidir_mistral",
            "vocab_size": backbone.vocab_size,
            "hidden_size": backbone.hidden_size,
            "num_hidden_layers": backbone.num_layers,
            "num_attention_heads": backbone.num_heads,
            "num_key_value_heads": backbone.num_kv_heads,
            "intermediate_size": backbone.intermediate_size,
            "rms_norm_eps": backbone.rms_norm_eps,
            "max_position_embeddings": backbone.max_positions,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "latent_attention_config": {
            "num_latents_value": pooler.num_latents,
            "num_cross_heads": pooler.num_heads,
            "cross_dim_head": pooler.head_width,
            "latent_dim": backbone.hidden_size,
            "hidden_dim": backbone.hidden_size,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder / "tokenizer.json")
    shapes = expected_shapes(spec)
    entries = [(released_name(name), "F16", shape) for name, shape in shapes.items()]
    noise = np.random.default_rng(seed).standard_normal(1 << 24, np.float32)
    with SafetensorsWriter(folder / "model.safetensors", entries) as writer:
        for name, shape in shapes.items():
            writer.write(released_name(name), _noise(noise, name, shape, backbone.num_layers))
        num_bytes, _ = writer.close()
    return num_bytes


def _noise(
    noise: np.ndarray, name: str, shape: tuple[int, ...], num_layers: int
) -> Iterator[np.ndarray]:
    """Yield a tensor in chunks cut from one block of noise, scaled as trained linears are.

    Each begins elsewhere in the block: equal weights would be stored once by some compilers. What
    is added to the states is small, as in models that train: 4 bits would not survive 32 layers.
    """
    if name.endswith("norm.weight"):
        yield np.ones(shape, np.float16)
        return
    scale = 1.0 if name.endswith(("latents", "embed_tokens.weight")) else shape[-1] ** -0.5
    if name.endswith(_ADDED):
        scale *= (2 * num_layers) ** -0.5
    block = (noise * np.float32(scale)).astype(np.float16)
    left, start = int(np.prod(shape)), zlib.crc32(name.encode()) % block.size
    while left:
        take = min(left, block.size - start)
        yield block[start : start + take]
        left, start = left - take, 0


def _write_tokenizer(path: Path) -> None:
    """Learn one from this package's own text: about as many tokens as a real tokenizer gives."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train([str(p) for p in Path(nvembed_deploy.__file__).parent.rglob("*.py")], trainer)
    tokenizer.save(str(path))


def _copy_seconds(source: Path, target: Path) -> float:
    """Copy and fsync in 16 MiB pieces; the source was just written, as the checkpoint was."""
    started = time.monotonic()
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 16 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    return time.monotonic() - started


class _Recorder:
    """A Progress that notes each step's seconds and the peak memory at its end."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {"imports": {"peak_bytes": peak_bytes()}}

    @contextmanager
    def step(self, name: str, total: int | None) -> Iterator[Advance]:
        started = time.monotonic()
        yield lambda _: None
        self.steps[name] = {
            "seconds": time.monotonic() - started,
            "peak_bytes": peak_bytes(),
            "total": total or 0,
        }


def _export(checkpoint: Path, out: Path, precision: str) -> dict[str, dict[str, float]]:
    # The self-check's imports count as imports.
    import onnxruntime  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401

    import nvembed_deploy.model.streaming  # noqa: F401
    from nvembed_deploy.export.pipeline import run_export
    from nvembed_deploy.export.plan import plan_export
    from nvembed_deploy.export.recipe import load_recipe

    recorder, recipe = _Recorder(), load_recipe(None, {"precision": precision})
    run_export(plan_export(checkpoint, recipe), out, progress=recorder)
    return recorder.steps


if __name__ == "__main__":
    sys.exit(main())
