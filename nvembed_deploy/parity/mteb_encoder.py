"""This file owns all that is mteb's: our encoder behind its protocol, local suites as its tasks.

It is the only file that imports mteb. Nothing here touches the network for a local suite; a task
by mteb's name is loaded as mteb loads it.
Source: mteb 2.26, `models/models_protocols.py` and `abstasks/`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.text.summarization import AbsTaskSummarization
from mteb.models import ModelMeta
from mteb.types import PromptType
from numpy.typing import NDArray

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.instructions import V2_INSTRUCTIONS
from nvembed_deploy.parity.local_data import dataset_of
from nvembed_deploy.parity.scores import TaskRun
from nvembed_deploy.parity.subject import Subject
from nvembed_deploy.parity.suite import LocalTask

datasets.disable_progress_bars()

_SPLIT = "test"
_DRAWN_TEXTS, _SAMPLES = 16_384, 10
"""What mteb's clustering draws: texts of a sample, and samples."""
_MOST_SAMPLES = 200
"""20 seconds for 660 texts."""
_QUERY_ONLY = {"Retrieval", "Reranking"}
"""Task types whose documents carry no instruction."""
_BASES: dict[str, tuple[type[AbsTask], str, str]] = {
    "retrieval": (AbsTaskRetrieval, "Retrieval", "ndcg_at_10"),
    "reranking": (AbsTaskRetrieval, "Reranking", "map_at_1000"),
    "sts": (AbsTaskSTS, "STS", "cosine_spearman"),
    "pair_classification": (AbsTaskPairClassification, "PairClassification", "max_ap"),
    "classification": (AbsTaskClassification, "Classification", "accuracy"),
    "clustering": (AbsTaskClustering, "Clustering", "v_measure"),
    "summarization": (AbsTaskSummarization, "Summarization", "cosine_spearman"),
}


class MtebEncoder:
    """A `Subject` as mteb calls it."""

    def __init__(self, subject: Subject) -> None:
        """Take what computes."""
        self._subject = subject
        width = subject.encoder.get_embedding_dimension()
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": f"local/{subject.name}", "revision": "local", "embed_dim": width}
        )

    def encode(
        self,
        inputs: Iterable[dict[str, list[str]]],
        *,
        task_metadata: Any,  # noqa: ANN401 - mteb.TaskMetadata
        prompt_type: PromptType | None = None,
        **_: Any,  # noqa: ANN401 - split, subset, batch size
    ) -> NDArray[np.float32]:
        """Embed every text of a data loader, with the task's instruction where it belongs."""
        texts = [text for batch in inputs for text in batch["text"]]
        instruction = instruction_of(task_metadata, prompt_type)
        return self._subject.embed(texts, instruction, prompt_type.value if prompt_type else "")

    def similarity(self, left: Any, right: Any) -> NDArray[np.float32]:  # noqa: ANN401 - arrays
        """Return the cosine of every pair; of two single texts a number, as mteb wants it."""
        cosine_NM = self._subject.encoder.similarity(np.asarray(left), np.asarray(right))
        return cosine_NM if np.ndim(left) > 1 or np.ndim(right) > 1 else cosine_NM[0, 0]

    def similarity_pairwise(
        self,
        left: Any,  # noqa: ANN401 - arrays
        right: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """Return the cosine of each row with its counterpart."""
        return self._subject.encoder.similarity_pairwise(np.asarray(left), np.asarray(right))


def instruction_of(metadata: Any, prompt_type: PromptType | None) -> str:  # noqa: ANN401 - mteb's
    """Return the instruction of a task's texts; empty for documents that carry none.

    Source: NV-Embed-v2's own where it differs (`instructions.py`), else mteb's for the task, else
    mteb's for the type of task.
    """
    if metadata.type in _QUERY_ONLY and prompt_type is PromptType.document:
        both = {"QuoraRetrieval"}  # its documents are questions too
        if metadata.name not in both:
            return ""
    if metadata.name in V2_INSTRUCTIONS:
        return V2_INSTRUCTIONS[metadata.name]
    prompt = metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get("query") or ""
    if prompt is None:
        known = _BASES.get(metadata.type.lower())
        prompt = getattr(known[0], "abstask_prompt", "") if known else ""
    return str(prompt or "")


def local_task(task: LocalTask) -> AbsTask:
    """Return a local task as mteb's."""
    base, kind, metric = _BASES[task.kind]
    category: Any = kind  # mteb's type is a Literal of all its names
    metadata = mteb.TaskMetadata(
        name=task.name,
        description=task.name,
        reference=None,
        dataset={"path": f"local/{task.name}", "revision": "local"},
        type=category,
        category="t2t",
        modalities=["text"],
        eval_splits=[_SPLIT],
        eval_langs=["eng-Latn"],
        main_score=metric,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
        prompt=task.instruction or None,
    )

    def load_data(self: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401 - mteb's signature
        self.dataset = dataset_of(task, _SPLIT)
        self.data_loaded = True

    attributes: dict[str, Any] = {"metadata": metadata, "load_data": load_data}
    if task.kind == "clustering":
        attributes |= _resampling(len(task.tables["data"]))
    if task.kind == "sts":
        highest = max(row["score"] for row in task.tables["pairs"])
        attributes |= {"min_score": 0, "max_score": max(5, int(np.ceil(highest)))}
    if task.kind == "summarization":
        rated = [score for row in task.tables["summaries"] for score in row["relevance"]]
        attributes |= {"min_score": min(rated), "max_score": max(rated)}
    instance: AbsTask = type(task.name, (base,), attributes)()
    return instance


def _resampling(num_texts: int) -> dict[str, Any]:
    """Return how often a clustering task draws how many of all of its texts.

    mteb clusters 4 % of the texts, and ten times 16,384 draws of them, however few there are. Where
    k-means ends moves V-measure by 0.03, so ten times show no difference below 0.02. The same draws
    in more and smaller samples, as many as there are texts, show one of 0.004.
    """
    size = min(_DRAWN_TEXTS, num_texts)
    return {
        "max_fraction_of_documents_to_embed": None,
        "max_document_to_embed": None,
        "max_documents_per_cluster": size,
        "n_clusters": min(_MOST_SAMPLES, _SAMPLES * _DRAWN_TEXTS // size),
    }


def named_tasks(names: Iterable[str]) -> list[AbsTask]:
    """Return mteb's tasks by their names, or those of a benchmark: MTEB(eng, v2).

    Raises:
        InputError: mteb knows no such task or benchmark.
    """
    return [task for name in names for task in _tasks_of(name)]


def _tasks_of(name: str) -> list[AbsTask]:
    """Look for a benchmark first: BEIR looks like a task, and no name is both."""
    try:
        # Copied: mteb's own are the same objects at every call, and hold random numbers.
        return [deepcopy(task) for task in mteb.get_benchmark(name).tasks]
    except KeyError as error:
        no_benchmark = error
    try:
        return [mteb.get_task(name)]
    except KeyError as no_task:
        said = [str(error.args[0]).removeprefix("KeyError: ") for error in (no_benchmark, no_task)]
        raise InputError(
            f"mteb has no task or benchmark {name!r}",
            f"of benchmarks it says: {said[0]} Of tasks: {said[1]}",
        ) from None


def run_task(task: AbsTask, subject: Subject) -> TaskRun:
    """Evaluate a subject on a task through mteb; return its main score and predictions."""
    if isinstance(task, AbsTaskAggregate):
        return _joined(task, [run_task(part, subject) for part in task.tasks])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        result = mteb.evaluate(
            MtebEncoder(subject),
            [task],
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            encode_kwargs={"batch_size": 256, "show_progress_bar": False},
            prediction_folder=folder,
        ).task_results[0]
        files = list(Path(folder).rglob("*_predictions.json"))
        predictions = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    task.load_data()  # mteb drops the data after a run; the truth of each item is needed
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(None)
    predictions.pop("mteb_model_meta", None)
    return TaskRun(
        name=task.metadata.name,
        kind=task.metadata.type,
        metric=task.metadata.main_score,
        instruction=instruction_of(task.metadata, None),
        score=float(result.get_score()),
        scores=result.scores,
        predictions=_as_judged(task, predictions),
        dataset=task.dataset,
    )


def _joined(task: AbsTask, runs: list[TaskRun]) -> TaskRun:
    """Return tasks that mteb scores by their mean, as CQADupstack's forums, as one's subsets."""
    scores: dict[str, list[dict[str, Any]]] = {}
    predictions, data = {}, {}
    for run in runs:
        for split, subsets in run.scores.items():
            for found in subsets:
                name = f"{run.name}/{found['hf_subset']}"
                scores.setdefault(split, []).append({**found, "hf_subset": name})
                predictions[name] = run.predictions.get(found["hf_subset"], {})
                data[name] = run.dataset.get(found["hf_subset"], run.dataset)
    return replace(
        runs[0],
        name=task.metadata.name,
        metric=task.metadata.main_score,
        score=float(np.mean([run.score for run in runs])),
        scores=scores,
        predictions=predictions,
        dataset=data,
    )


def _as_judged(task: AbsTask, predictions: dict[str, Any]) -> dict[str, Any]:
    """Leave out of rankings what mteb does once they are saved: a query itself, or the first."""
    if not isinstance(task, AbsTaskRetrieval):
        return predictions
    for splits in predictions.values():
        for found in splits.values():
            for query, scores in found.items():
                if task.ignore_identical_ids:
                    scores.pop(query, None)
                if task.skip_first_result and scores:
                    del scores[max(scores, key=scores.__getitem__)]
    return predictions
