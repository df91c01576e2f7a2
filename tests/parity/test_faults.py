"""Planted faults: each of these mistakes must turn the verdict red, and none may pass unseen.

The reference is the tiny model in torch; the candidate is the same with one mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.model import pooler
from nvembed_deploy.model.nvembed import NVEmbed, build_model, load_model
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.parity.cache import text_key
from nvembed_deploy.parity.embedding import EmbeddingParity, compare_embeddings
from nvembed_deploy.parity.margins import MARGINS
from nvembed_deploy.parity.scores import TaskRun
from nvembed_deploy.parity.subject import Subject, Text
from nvembed_deploy.parity.verdict import LEAST_ITEMS, Verdict, compare_task, decide
from nvembed_deploy.runtimes.encoder import Encoder
from nvembed_deploy.runtimes.reference_runtime import ReferenceRuntime
from nvembed_deploy.text import Batch, Tokenizer
from tests import factories

SPEC = factories.TINY
WORDS = "the cat sat on a mat and another text of many words".split()  # noqa: SIM905
CPU = torch.device("cpu")
PLAIN = [" ".join(np.roll(WORDS, i)[: 2 + i % 9]) for i in range(24)]
TEXTS = [Text("", t, "document") for t in PLAIN] + [Text("find it", t, "query") for t in PLAIN]
Fault = Callable[["Planter"], None]


class Faulty(ReferenceRuntime):
    """The torch runtime with a mistake before or after the model."""

    def __init__(self, model: NVEmbed) -> None:
        super().__init__(model, CPU)
        self.before: Callable[[Batch], Batch] = lambda batch: batch
        self.after: Callable[[np.ndarray], np.ndarray] = lambda rows: rows

    def embed(self, batch: Batch) -> np.ndarray:
        return self.after(super().embed(self.before(batch)))


class Planter:
    """What a fault may change: the model, its batches, its output, its tokenizer."""

    def __init__(self, weights: Weights, tokenizer: Tokenizer, patch: pytest.MonkeyPatch) -> None:
        self.model = load_model(weights)
        self.runtime = Faulty(self.model)
        self.tokenizer = tokenizer
        self.patch = patch

    def respec(self, **backbone_changes: object) -> None:
        """Rebuild the model with another backbone spec and the same weights."""
        spec = replace(SPEC, backbone=replace(SPEC.backbone, **backbone_changes))
        model = build_model(spec)
        model.load_state_dict(self.model.state_dict())
        self.model, self.runtime = model, Faulty(model)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.load(tiny_base / "tokenizer.json", SPEC.text)


@pytest.fixture(scope="module")
def reference(
    tiny_weights: Weights, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    runtime = ReferenceRuntime(load_model(tiny_weights), CPU)
    with Encoder(runtime, tokenizer, spec=SPEC) as encoder:
        yield Subject.open("reference", encoder, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def planter(
    tiny_weights: Weights, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Planter:
    return Planter(tiny_weights, tokenizer, monkeypatch)


def judge(planter: Planter, reference: Subject, folder: Path) -> Verdict:
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(planter.runtime, planter.tokenizer, spec=SPEC))
        candidate = Subject.open("candidate", encoder, folder)
        found = compare_embeddings(candidate, reference, TEXTS)
    return decide([], found, MARGINS["fp32"], "fp32")


def masked(change: Callable[[Batch], dict[str, np.ndarray]]) -> Fault:
    def plant(planter: Planter) -> None:
        planter.runtime.before = lambda batch: replace(batch, **change(batch))

    return plant


def lose_eos(batch: Batch) -> dict[str, np.ndarray]:
    attended, pooled = batch.attention_mask_BS.copy(), batch.pool_mask_BS.copy()
    last = attended.sum(1) - 1
    for mask in (attended, pooled):
        mask[np.arange(len(last)), last] = 0
    return {"attention_mask_BS": attended, "pool_mask_BS": pooled}


def pool_one_more(batch: Batch) -> dict[str, np.ndarray]:
    pooled = batch.pool_mask_BS.copy()
    first = pooled.argmax(1)
    rows = np.flatnonzero(first)
    pooled[rows, first[rows] - 1] = 1
    return {"pool_mask_BS": pooled}


def pad_left(batch: Batch) -> dict[str, np.ndarray]:
    ids, attended = batch.input_ids_BS.copy(), batch.attention_mask_BS.copy()
    for row, length in enumerate(attended.sum(1)):
        shift = attended.shape[1] - length
        ids[row], attended[row] = np.roll(ids[row], shift), np.roll(attended[row], shift)
    return {"input_ids_BS": ids, "attention_mask_BS": attended}


def change_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def plant(planter: Planter) -> None:
        parameter = planter.model.get_parameter(name)
        parameter.copy_(change(parameter.clone()))

    return plant


def swap_halves(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat(weight.chunk(2)[::-1])


def slide(planter: Planter) -> None:
    def window(_: object, args: tuple[()], given: dict[str, Any]) -> tuple[tuple[()], dict]:
        mask_B1SS = given["attention_mask"]
        place = torch.arange(mask_B1SS.shape[-1])
        far_SS = (place[:, None] - place[None]).abs() > 64
        masked = mask_B1SS.masked_fill(far_SS, torch.finfo(mask_B1SS.dtype).min)
        return args, given | {"attention_mask": masked}

    planter.model.backbone.decoder.register_forward_pre_hook(window, with_kwargs=True)


def tanh_gelu(planter: Planter) -> None:
    # the reference's embeddings are cached by now
    class Tanh:
        gelu = staticmethod(lambda x: functional.gelu(x, approximate="tanh"))

        def __getattr__(self, name: str) -> object:
            return getattr(functional, name)

    planter.patch.setattr(pooler, "functional", Tanh())


def cut_left(planter: Planter) -> None:
    class CutLeft(Tokenizer):
        def _truncate(self, ids: list[int], limit: int) -> list[int]:
            return ids if len(ids) <= limit else [ids[0], *ids[len(ids) - limit + 1 :]]

    planter.tokenizer = CutLeft(planter.tokenizer._tokenizer, SPEC.text)


def merge(times: float) -> Fault:
    """The adapter's delta, added `times` too often."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(64, 2, generator=generator), torch.randn(2, 64, generator=generator)
    name = "backbone.decoder.layers.1.self_attn.q_proj.weight"
    return change_weight(name, lambda weight: weight + times * 0.1 * up @ down)


def unnormalised(planter: Planter) -> None:
    planter.runtime.after = lambda rows: 3 * rows


FAULTS: dict[str, tuple[Fault, str]] = {
    "causal mask left on": (lambda p: p.respec(causal=True), "all texts differ"),
    "pool mask is the attention mask": (
        masked(lambda b: {"pool_mask_BS": b.attention_mask_BS}),
        "only texts with an instruction differ",
    ),
    "EOS missing": (masked(lose_eos), "short texts differ most: EOS missing"),
    "last instruction token pooled": (masked(pool_one_more), "texts with an instruction"),
    "left padding": (masked(pad_left), "short texts differ most: EOS missing, padding side"),
    "wrong rope base": (lambda p: p.respec(rope_theta=1e6), "rope base"),
    "sliding window": (slide, "sliding window"),
    "tanh instead of erf GELU": (tanh_gelu, "all texts differ a little"),
    "latents not normalised": (
        change_weight("pooler.latent_norm.weight", lambda w: 0.3 * w),
        "all texts differ",
    ),
    "value and gate swapped": (
        change_weight("pooler.feed_up.weight", swap_halves),
        "all texts differ",
    ),
    "adapter merged twice": (merge(1.0), "adapter merged"),
    "adapter not merged": (merge(-1.0), "adapter merged"),
    "one layer's scale off by two": (
        change_weight("backbone.decoder.layers.1.mlp.down_proj.weight", lambda w: 2 * w),
        "a wrong scale",
    ),
    "cut on the wrong side": (cut_left, "side of truncation"),
    "output not normalised": (unnormalised, "not normalised"),
}


@pytest.mark.parametrize(("fault", "cause"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_turns_the_verdict_red_and_is_named(
    planter: Planter, reference: Subject, tmp_path: Path, fault: Fault, cause: str
) -> None:
    reference.embed(PLAIN, "")
    reference.embed(PLAIN, "find it")
    fault(planter)
    verdict = judge(planter, reference, tmp_path)
    assert not verdict.passed
    assert verdict.reasons
    assert cause in "; ".join(verdict.causes)


def test_without_a_fault_the_verdict_is_green(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    verdict = judge(planter, reference, tmp_path)
    assert (verdict.passed, verdict.reasons, verdict.causes) == (True, [], [])
    assert verdict.embedding.mean_cosine == pytest.approx(1, abs=1e-6)
    assert verdict.embedding.neighbours == verdict.embedding.cross_neighbours == 1


def test_an_overflow_is_refused_before_any_score(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    planter.model.get_parameter("backbone.decoder.layers.0.mlp.down_proj.weight")[3] = np.inf
    with pytest.raises(ArtifactError, match="not finite"):
        judge(planter, reference, tmp_path)


def test_a_reference_of_another_length_gives_no_cosine_beyond_one(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    unnormalised(planter)
    with Encoder(planter.runtime, planter.tokenizer, spec=SPEC) as encoder:
        longer = Subject.open("longer", encoder, tmp_path)
        found = compare_embeddings(reference, longer, TEXTS)
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "value", "said"),
    [
        ("mean_cosine", 0.9998, "mean cosine"),
        ("min_cosine", 0.998, "lowest cosine"),
        ("median_abs", 3e-6, "half of the texts move"),
        ("batch_drift", 2e-4, "moves by 2.0e-04 with its batch"),
        ("long_cosine", 0.9998, "a long text"),
        ("cut_cosine", 0.9998, "a cut text"),
        ("norm_drift", 2e-3, "lengths are off"),
    ],
)
def test_each_number_alone_turns_the_verdict_red(number: str, value: float, said: str) -> None:
    zeros = dict.fromkeys(("max_abs", "median_abs", "norm_drift", "batch_drift"), 0.0)
    equal = replace(EmbeddingParity(30, *[1.0] * 14, [], []), **zeros)
    assert decide([], equal, MARGINS["fp32"], "fp32").passed
    found = decide([], replace(equal, **{number: value}), MARGINS["fp32"], "fp32")
    assert not found.passed
    assert [said in reason for reason in found.reasons] == [True]


def test_one_text_of_another_length_is_seen(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    def stretch(rows: np.ndarray) -> np.ndarray:
        rows[0] *= 1.01
        return rows

    planter.runtime.after = stretch
    found = judge(planter, reference, tmp_path).embedding
    assert found.norm_drift == pytest.approx(0.01, abs=1e-5)


def nearest(rows: np.ndarray, index: np.ndarray, *, own: bool) -> list[set[int]]:
    similar = rows @ index.T - (9 * np.eye(len(rows), len(index)) if own else 0)
    return [set(np.argsort(-scores)[:10].tolist()) for scores in similar]


def test_neighbours_are_other_texts_and_the_candidates_queries_ask_the_references_index(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    masked(lambda batch: {"pool_mask_BS": batch.attention_mask_BS})(planter)  # of queries alone
    with Encoder(planter.runtime, planter.tokenizer, spec=SPEC) as encoder:
        candidate = Subject.open("candidate", encoder, tmp_path)
        found = compare_embeddings(candidate, reference, TEXTS)
        ours, theirs = (
            np.concatenate([side.embed(PLAIN, ""), side.embed(PLAIN, "find it")])
            for side in (candidate, reference)
        )
    index = theirs[: len(PLAIN)]
    for share, one, other in (
        (found.neighbours, nearest(ours, ours, own=True), nearest(theirs, theirs, own=True)),
        (
            found.cross_neighbours,
            nearest(ours[len(PLAIN) :], index, own=False),
            nearest(theirs[len(PLAIN) :], index, own=False),
        ),
    ):
        expected = np.mean([len(a & b) / 10 for a, b in zip(one, other, strict=True)])
        assert share == pytest.approx(expected)
        assert share < 1
    assert found.worst[0].cosine == found.min_cosine < found.worst[-1].cosine


def test_of_a_large_corpus_few_texts_are_remembered(reference: Subject, tmp_path: Path) -> None:
    subject = Subject.open("large", reference.encoder, tmp_path)
    texts = [str(i) for i in range(4000)]
    subject.cache.add([text_key("find it", text) for text in texts], np.ones((4000, 64)))
    for start in range(0, 4000, 1000):
        subject.embed(texts[start : start + 1000], "find it")
    numbers = [int(text.text) for text in subject.seen.values()]
    assert len(numbers) == 3000
    assert abs(sum(number < 2000 for number in numbers) - 1500) < 100  # early ones as late ones


def asked(count: int) -> TaskRun:
    """Return a task of `count` queries, each answered rightly."""
    truth = {f"q{i}": {"d": 1} for i in range(count)}
    found = {query: {"d": 0.5} for query in truth}
    data = {"default": {"test": {"relevant_docs": truth}}}
    predictions = {"default": {"test": found}}
    scores = {"test": [{"hf_subset": "default"}]}
    return TaskRun("t", "Retrieval", "ndcg_at_10", "", 1.0, scores, predictions, data)


def clustered(texts: int, samples: int) -> TaskRun:
    """Return a task of `texts` texts that mteb drew `samples` times."""
    scores = {"test": [{"hf_subset": "default", "v_measures": {"Level 0": [0.5] * samples}}]}
    data = {"test": [{"sentences": str(i)} for i in range(texts)]}
    predictions = {"default": {"test": [0]}}
    return TaskRun("t", "Clustering", "v_measure", "", 0.5, scores, predictions, data)


def translated(rows: int) -> TaskRun:
    """Return a task of a kind whose items are not known."""
    scores = {"test": [{"hf_subset": "fr-en"}]}
    data = {"fr-en": {"test": [{"sentence1": "a"}] * rows}}
    return TaskRun("t", "BitextMining", "f1", "", 0.5, scores, {}, data)


@pytest.mark.parametrize(
    ("few", "said"),
    [
        (asked(1), "(1 queries; too few to show anything, 20 are needed)"),
        (asked(LEAST_ITEMS - 1), "(19 queries; too few to show anything, 20 are needed)"),
        (clustered(5, 200), "(200 resamples of 5 texts; too few to show anything, 20 are needed)"),
        (translated(3), "difference alone, of 3 rows; too few to show anything, 20 are needed)"),
        (replace(translated(3), scores={}), "of an unknown number of rows; too few"),
    ],
)
def test_a_task_of_few_items_does_not_pass_however_equal_they_are(few: TaskRun, said: str) -> None:
    found = compare_task(few, few, 1.0, 0)
    assert not found.passed
    assert said in found.reason


@pytest.mark.parametrize(
    "run", [asked(LEAST_ITEMS), asked(300), clustered(100, 10), translated(LEAST_ITEMS)]
)
def test_equal_items_pass_where_there_are_enough(run: TaskRun) -> None:
    found = compare_task(run, run, 0.0, 0)
    assert (found.passed, found.difference) == (True, 0.0)


def test_where_items_are_too_few_the_remedy_is_more_of_them(
    planter: Planter, reference: Subject, tmp_path: Path
) -> None:
    embedding = judge(planter, reference, tmp_path).embedding
    task = compare_task(asked(1), asked(1), 0.1, 0)
    verdict = decide([task], embedding, MARGINS["fp32"], "fp32")
    assert not verdict.passed
    assert verdict.causes == ["tasks of at least 20 queries, pairs, examples or texts are needed"]
