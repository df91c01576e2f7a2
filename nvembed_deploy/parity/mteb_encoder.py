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

_SPLIT, _LOCAL = "test", "local"
_DRAWN_TEXTS, _SAMPLES = 16_384, 10
"""What mteb's clustering draws: texts of a sample, and samples."""
_MOST_SAMPLES = 200
"""20 seconds for 660 texts."""
_ASKED_BY_QUESTIONS = {"QuoraRetrieval"}
"""Retrievals whose documents carry the instruction: they are questions too."""
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
    """A `Subject` as mteb calls it for one task."""

    def __init__(self, subject: Subject, task: AbsTask) -> None:
        """Take what computes, and the task, which has the instruction."""
        self._subject = subject
        self._instruction = instruction_of(task)
        is_instructed = task.metadata.name in _ASKED_BY_QUESTIONS and not _is_local(task)
        self._are_documents_plain = isinstance(task, AbsTaskRetrieval) and not is_instructed
        width = subject.encoder.get_embedding_dimension()
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": f"local/{subject.name}", "revision": "local", "embed_dim": width}
        )

    def encode(
        self,
        inputs: Iterable[dict[str, list[str]]],
        *,
        prompt_type: PromptType | None = None,
        **_: Any,  # noqa: ANN401 - metadata, split, subset, batch size
    ) -> NDArray[np.float32]:
        """Embed every text of a data loader, with the task's instruction where it belongs."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_plain = prompt_type is PromptType.document and self._are_documents_plain
        instruction = "" if is_plain else self._instruction
        return self._subject.embed(texts, instruction, prompt_type.value if prompt_type else "")

    def similarity(self, left: Any, right: Any) -> NDArray[np.float32]:  # noqa: ANN401 - arrays
        """Return the cosine of every pair; of two single texts a number, as mteb wants it."""
        cosine_NM = self._subject.encoder.similarity(np.asarray(left), np.asarray(right))
        return cosine_NM if np.ndim(left) > 1 or np.ndim(right) > 1 else cosine_NM[0, 0]

    def similarity_pairwise(self, left: Any, right: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return the cosine of each row with its counterpart."""
        return self._subject.encoder.similarity_pairwise(np.asarray(left), np.asarray(right))


def instruction_of(task: AbsTask) -> str:
    """Return the instruction of a task's texts; of a retrieval its documents carry none.

    Source: a local task's own; else NV-Embed-v2's where it differs (`instructions.py`), else mteb's
    for the task, else mteb's for the type of task.
    """
    if isinstance(task, AbsTaskAggregate):
        return instruction_of(task.tasks[0])
    if _is_local(task):
        return str(task.metadata.prompt or "")
    if task.metadata.name in V2_INSTRUCTIONS:
        return V2_INSTRUCTIONS[task.metadata.name]
    prompt = task.metadata.prompt
    if isinstance(prompt, dict):
        return prompt.get("query") or ""
    return str(prompt or getattr(task, "abstask_prompt", ""))


def _is_local(task: AbsTask) -> bool:
    return str(task.metadata.revision) == _LOCAL


def local_task(task: LocalTask) -> AbsTask:
    """Return a local task as mteb's."""
    base, kind, metric = _BASES[task.kind]
    category: Any = kind  # mteb's type is a Literal of all its names
    metadata = mteb.TaskMetadata(
        name=task.name,
        description=task.name,
        dataset={"path": f"{_LOCAL}/{task.name}", "revision": _LOCAL},
        type=category,
        category="t2t",
        modalities=["text"],
        eval_splits=[_SPLIT],
        eval_langs=["eng-Latn"],
        main_score=metric,
        prompt=task.instruction or None,
    )

    def load_data(self: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401 - mteb's signature
        self.dataset = dataset_of(task, _SPLIT)
        self.data_loaded = True

    attributes: dict[str, Any] = {"metadata": metadata, "load_data": load_data}
    if task.kind == "clustering":
        attributes |= _resampling(len(task.tables["data"]))
    if task.kind == "summarization":
        attributes |= {"min_score": 0, "max_score": 1}  # of ranks alone: any two numbers do
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


def prepare(local: Iterable[LocalTask], names: Iterable[str]) -> list[AbsTask]:
    """Return local tasks, then mteb's by their names, or a benchmark's: MTEB(eng, v2); each once.

    Raises:
        InputError: mteb knows no such task or benchmark, it is of more than texts, or another one
            has its name: a local one, or one of other languages or splits.
    """
    tasks = {task.name: local_task(task) for task in local}
    for task in [task for name in names for task in _tasks_of(name)]:
        name = task.metadata.name
        if set(task.metadata.modalities) != {"text"}:
            raise InputError(
                f"mteb's {name} is of {', '.join(task.metadata.modalities)}",
                "name tasks of texts: NV-Embed has no other input",
            )
        if _extent(tasks.setdefault(name, task)) != _extent(task):
            raise InputError(
                f"mteb's {name} is named, and another of the suite or of other languages or splits",
                "measure them in two runs: a verdict names tasks by it",
            )
    return list(tasks.values())


def _extent(task: AbsTask) -> tuple[bool, set[str], set[str]]:
    """Return whose it is, and what is run: a benchmark may take some of its subsets and splits."""
    return _is_local(task), set(task.hf_subsets or ()), set(task.eval_splits)


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
    _load(task)
    with tempfile.TemporaryDirectory() as folder:
        result = mteb.evaluate(
            MtebEncoder(subject, task),
            [task],
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            encode_kwargs={"batch_size": 256, "show_progress_bar": False},
            prediction_folder=folder,
        ).task_results[0]
        files = list(Path(folder).rglob("*_predictions.json"))
        predictions = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    predictions.pop("mteb_model_meta", None)
    return TaskRun(
        name=task.metadata.name,
        kind=task.metadata.type,
        metric=task.metadata.main_score,
        instruction=instruction_of(task),
        score=float(result.get_score()),
        scores=result.scores,
        predictions=_as_judged(task, predictions),
        dataset=task.dataset,
    )


def _load(task: AbsTask) -> None:
    """Load a task's data; what mteb loads itself it drops, and each item's truth is needed.

    Raises:
        InputError: they cannot be had.
    """
    try:
        task.load_data()
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the data of mteb's {task.metadata.name} cannot be had: {said}",
            "run it once where huggingface.co is reached (its cache, HF_HOME, is read from then "
            "on), or measure on tasks of your own: --suite",
        ) from error


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
