"""This file owns whether TensorRT works on this machine at all, asked in a minute.

A checkpoint of two narrow layers goes all the way that one of full size would: exported, compiled,
loaded, run, recorded as a CUDA graph and replayed, and compared with ONNX Runtime's processor.
Run: python -m benchmarks.engine_probe --engine tensorrt
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.lean_export import write_random_checkpoint
from nvembed_deploy import cli, load_encoder
from nvembed_deploy.__main__ import build_parser
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import HardwareError
from nvembed_deploy.runtimes import RuntimeOptions
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerSpec, TextSpec

TINY = ModelSpec(
    backbone=BackboneSpec(8000, 256, 2, 4, 2, 64, 512),
    pooler=PoolerSpec(num_latents=16, num_heads=4, head_width=64, feed_width=1024),
    text=TextSpec(bos_id=1, eos_id=2, pad_id=2),
)
_TEXTS = ("a query", "a longer text, " * 30, "a document " * 200)
_TIMES = 3
"""Run, record, replay."""
_LEAST_COSINE = 0.999
"""A processor computes fp16 in float32; measured on full size it loses 0.00001."""


def probe(args: argparse.Namespace) -> None:
    """Export, compile, and run unless told otherwise."""
    target = ("--target", args.target) if args.target else ()
    with tempfile.TemporaryDirectory(prefix="probe-") as name:
        checkpoint, artifact = Path(name) / "checkpoint", Path(name) / "artifact"
        write_random_checkpoint(checkpoint, TINY)
        for words in (
            ("export", str(checkpoint), str(artifact)),
            ("compile", str(artifact), "--engine", args.engine, *target),
        ):
            ours = build_parser().parse_args(words)
            ours.command(ours)
        if not args.build_only:
            cli.say(f"{args.engine} works here: cosine {compare(artifact, args.engine):.6f}")


def compare(artifact: Path, runtime: str) -> float:
    """Return the least cosine of a runtime's rows with those of ONNX Runtime on the processor.

    Raises:
        HardwareError: it is too small.
    """
    with load_encoder(artifact, "onnx", device="cpu") as encoder:
        expected_ND = encoder.encode(_TEXTS)
    with load_encoder(artifact, runtime, options=RuntimeOptions(compiles_engines=False)) as encoder:
        rows = [encoder.encode(_TEXTS) for _ in range(_TIMES)]
    cosine = min(float((rows_ND * expected_ND).sum(1).min()) for rows_ND in rows)
    if not cosine >= _LEAST_COSINE:
        raise HardwareError(
            f"{runtime} runs here, but its rows are not ONNX Runtime's: cosine {cosine:.4f}, "
            f"expected {_LEAST_COSINE}",
            "report it with the versions of the driver and of TensorRT",
        )
    return cosine


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=[f.value for f in Flavour], required=True)
    parser.add_argument("--target", help="GPUs of a tensorrt-rtx engine")
    parser.add_argument("--build-only", action="store_true", help="where there is no GPU")
    return cli.run(probe, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
