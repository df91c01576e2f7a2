"""Tests of nvembed_deploy/parity/mteb_encoder.py: real mteb over local tasks, without a network."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import datasets
import mteb
import numpy as np
import pytest
from mteb.abstasks import AbsTask, AbsTaskClustering
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy

from nvembed_deploy.errors import InputError
from nvembed_deploy.parity.mteb_encoder import (
    _resampling,
    instruction_of,
    local_task,
    prepare,
    run_task,
)
from nvembed_deploy.parity.scores import TaskRun, count_rows, items_of
from nvembed_deploy.parity.side import Side, open_subject
from nvembed_deploy.parity.suite import KINDS, count_texts, read_suite
from tests.parity.small import text, write_suite


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_mtebs_score_is_the_statistic_of_its_items(
    tiny_assembled: Path, tmp_path: Path, kind: str
) -> None:
    suite = write_suite(tmp_path / "suite", (kind,))
    for path in suite.glob("*/queries.jsonl"):
        path.write_text(path.read_text() + '{"_id": "of another split", "text": "a cat"}\n')
    (task,) = read_suite(suite)
    counts: list[int] = []
    with ExitStack() as stack:
        subject = open_subject("m", Side(tiny_assembled, device="cpu"), tmp_path / "cache", stack)
        subject.advance = counts.append
        run = run_task(local_task(task), subject)
        assert sum(counts) == count_texts(task)
        again = run_task(local_task(task), subject)
    assert run.score == again.score
    assert np.isfinite(run.score)
    items = items_of(run)
    assert items is not None
    assert items.score == pytest.approx(run.score, abs=2e-5)  # mteb rounds to 5 decimals
    instructed = {text.instruction for text in subject.seen.values() if text.role != "document"}
    assert instructed == {f"do {kind}"}


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("retrieval", "ndcg_at_1"),
        ("retrieval", "recall_at_3"),
        ("retrieval", "mrr_at_5"),
        ("reranking", "map_at_10"),
        ("classification", "f1"),
        ("pair_classification", "max_accuracy"),
        ("clustering", "ami"),
    ],
)
def test_so_it_is_for_other_main_scores(
    tiny_assembled: Path, tmp_path: Path, kind: str, metric: str
) -> None:
    (read,) = read_suite(write_suite(tmp_path / "suite", (kind,)))
    task = local_task(read)
    type(task).metadata = task.metadata.model_copy(update={"main_score": metric})
    assert_items_are_of_the_score(task, tiny_assembled, tmp_path)


@pytest.mark.parametrize("rule", ["ignore_identical_ids", "skip_first_result"])
def test_what_mteb_leaves_out_of_a_ranking_is_left_out(
    tiny_assembled: Path, tmp_path: Path, rule: str
) -> None:
    suite = write_suite(tmp_path / "suite", ("retrieval",))
    for name, column in (("queries.jsonl", '"_id": "q'), ("qrels.tsv", "q")):
        path = suite / "small_retrieval" / name
        renamed = [line.replace(column, column[:-1] + "d") for line in path.read_text().split("\n")]
        path.write_text("\n".join(renamed).replace("duery-id", "query-id"))
    task = local_task(read_suite(suite)[0])
    setattr(task, rule, True)
    assert_items_are_of_the_score(task, tiny_assembled, tmp_path)


@pytest.mark.filterwarnings("ignore:The task")
def test_an_older_clustering_task_has_items(tiny_assembled: Path, tmp_path: Path) -> None:
    rows = [{"sentences": [text(i + j) for j in range(6)], "labels": [0, 1] * 3} for i in range(12)]

    class Older(AbsTaskClusteringLegacy):
        metadata = mteb.get_task("TwentyNewsgroupsClustering").metadata

        def load_data(self, *_: object, **__: object) -> None:
            self.dataset = {"test": datasets.Dataset.from_list(rows)}
            self.data_loaded = True

    run = assert_items_are_of_the_score(Older(), tiny_assembled, tmp_path)
    assert count_rows(run) == 72


def test_tasks_that_mteb_joins_are_the_subsets_of_one(tiny_assembled: Path, tmp_path: Path) -> None:
    kinds = ("retrieval", "reranking")
    parts = [local_task(task) for task in read_suite(write_suite(tmp_path / "suite", kinds))]
    for part in parts:
        type(part).metadata = part.metadata.model_copy(update={"main_score": "ndcg_at_10"})

    class Joined(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="Joined",
            description="two",
            tasks=parts,
            main_score="ndcg_at_10",
            type="Retrieval",
            eval_splits=["test"],
        )

    run = assert_items_are_of_the_score(Joined(), tiny_assembled, tmp_path)
    assert run.name == "Joined"
    assert count_rows(run) == 40


def assert_items_are_of_the_score(task: AbsTask, model: Path, folder: Path) -> TaskRun:
    with ExitStack() as stack:
        subject = open_subject("m", Side(model, device="cpu"), folder / "cache", stack)
        run = run_task(task, subject)
    items = items_of(run)
    assert items is not None
    assert items.score == pytest.approx(run.score, abs=2e-5)
    return run


def test_documents_carry_no_instruction(tiny_assembled: Path, tmp_path: Path) -> None:
    (task,) = read_suite(write_suite(tmp_path / "suite", ("retrieval",)))
    with ExitStack() as stack:
        subject = open_subject("m", Side(tiny_assembled, device="cpu"), tmp_path / "cache", stack)
        run_task(local_task(task), subject)
    by_role = {text.role: text.instruction for text in subject.seen.values()}
    assert by_role == {"query": "do retrieval", "document": ""}


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("NFCorpus", "Given a question, retrieve relevant documents that answer the question"),
        ("FEVER", "Given a claim, retrieve documents that support or refute the claim"),
        ("STS12", "Retrieve semantically similar text"),
        ("TwentyNewsgroupsClustering", "Identify the topic or theme of the given news articles"),
        ("RTE3", "Retrieve text that are semantically similar to the given text."),
        ("TbilisiCityHallBitextMining", "Retrieve parallel sentences."),
        ("EmitClassification", "Classify user passages."),
        ("IFIRCds", "Retrieve text based on user query."),
        ("CQADupstackRetrieval", "Retrieve text based on user query."),
    ],
)
def test_mtebs_tasks_have_nv_embeds_instructions(name: str, instruction: str) -> None:
    assert instruction_of(mteb.get_task(name)) == instruction


@pytest.mark.parametrize("name", ["NQ", "QuoraRetrieval"])
@pytest.mark.parametrize("instruction", ["find it", ""])
def test_a_local_task_has_its_own_instruction_whatever_it_is_called(
    tiny_assembled: Path, tmp_path: Path, name: str, instruction: str
) -> None:
    (read,) = read_suite(write_suite(tmp_path / "suite", ("retrieval",)))
    task = local_task(replace(read, name=name, instruction=instruction))
    with ExitStack() as stack:
        subject = open_subject("m", Side(tiny_assembled, device="cpu"), tmp_path / "cache", stack)
        assert run_task(task, subject).instruction == instruction
    by_role = {text.role: text.instruction for text in subject.seen.values()}
    assert by_role == {"query": instruction, "document": ""}


def test_a_task_that_is_named_twice_is_run_once() -> None:
    names = [task.metadata.name for task in prepare([], ["STS12", "MTEB(eng, v2)", "STS12"])]
    assert names[0] == "STS12"
    assert len(names) == len(set(names)) > 30


def test_what_could_not_be_told_apart_or_embedded_is_refused(tmp_path: Path) -> None:
    (read,) = read_suite(write_suite(tmp_path, ("sts",)))
    with pytest.raises(InputError, match="mteb's STS12 is named, and another of the suite"):
        prepare([replace(read, name="STS12")], ["STS12"])
    with pytest.raises(InputError, match="mteb's CIFAR10 is of image"):
        prepare([], ["CIFAR10"])


def test_a_task_in_two_extents_is_refused() -> None:
    """The benchmark takes English alone: one of the two would be left out."""
    with pytest.raises(InputError, match="mteb's STS17 is named, and another"):
        prepare([], ["STS17", "MTEB(eng, v2)"])


def test_data_that_cannot_be_had_are_named(tiny_assembled: Path, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported")

    (task,) = prepare([], ["STS12"])
    task.load_data = refuse
    with ExitStack() as stack:
        subject = open_subject("m", Side(tiny_assembled, device="cpu"), tmp_path / "cache", stack)
        with pytest.raises(
            InputError, match=r"data of mteb's STS12 cannot be had: Dataset scripts"
        ):
            run_task(task, subject)


def test_a_benchmark_is_its_tasks_and_an_unknown_name_is_refused() -> None:
    names = [task.metadata.name for task in prepare([], ["MTEB(eng, v2)"])]
    assert len(names) > 30
    assert "ArguAna" in names
    with pytest.raises(InputError, match="'NoSuchTask'"):
        prepare([], ["NoSuchTask"])


@pytest.mark.parametrize(("name", "task"), [("BEIR", "SciFact"), ("MTEB(eng, v2)", "STS12")])
def test_a_benchmark_is_found_by_any_name_and_each_call_has_tasks_of_its_own(
    name: str, task: str
) -> None:
    one, other = ({t.metadata.name: t for t in prepare([], [name])} for _ in range(2))
    assert one.keys() == other.keys()
    assert one[task] is not other[task]
    assert one[task].np_rng is not other[task].np_rng


@pytest.mark.parametrize(
    ("name", "meant"), [("MTEB(eng, v9)", "MTEB(eng, v2)"), ("NFCorpu", "NFCorpus")]
)
def test_a_name_with_a_slip_is_told_what_it_may_mean(name: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare([], ["STS12", name])
    assert caught.value.problem == f"mteb has no task or benchmark {name!r}"
    assert meant in caught.value.fix


@pytest.mark.parametrize("num_texts", [1, 20, 658, 5000, 16_384, 100_000])
def test_clustering_draws_no_more_than_mteb_in_more_samples(num_texts: int) -> None:
    drawn = _resampling(num_texts)
    size, samples = drawn["max_documents_per_cluster"], drawn["n_clusters"]
    assert size == min(num_texts, AbsTaskClustering.max_documents_per_cluster)
    assert AbsTaskClustering.n_clusters <= samples <= 200
    assert size * samples <= (
        AbsTaskClustering.max_documents_per_cluster * AbsTaskClustering.n_clusters
    )
