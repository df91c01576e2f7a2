"""A toy artifact: a graph whose embeddings are plain arithmetic, so that tests can predict them.

embedding(text) = L2 norm of the mean of the table's rows over pool_mask and attention_mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from nvembed_deploy.artifact import LAYOUT, Manifest, WeightsSize, staged_artifact, write_manifest
from nvembed_deploy.spec import BackboneSpec, ModelSpec, PoolerForm, Precision, TextSpec

WORDS = [f"w{i}" for i in range(50)]
VOCABULARY = ["<unk>", "<s>", "</s>", "Instruct", ":", "Query", "find", "match", *WORDS]
WIDTH = 16
SPEC = ModelSpec(
    backbone=BackboneSpec(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, num_layers=1, max_positions=64
    ),
    text=TextSpec(max_tokens=64),
    name="toy",
    prompts={"query": "find : ", "passage": "match : "},
)


def toy_table() -> np.ndarray:
    """Rows that no two words share, [vocabulary, D]."""
    return np.sin(np.arange(len(VOCABULARY) * WIDTH, dtype=np.float32) ** 1.1).reshape(-1, WIDTH)


def write_toy(stage: Path, table: np.ndarray, inputs: tuple[str, ...]) -> None:
    save_file({"table": table}, stage / LAYOUT.weights)
    header = int.from_bytes((stage / LAYOUT.weights).read_bytes()[:8], "little")
    stored = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=table.shape)
    stored.data_location = TensorProto.EXTERNAL
    where = {"location": LAYOUT.weights, "offset": 8 + header, "length": table.nbytes}
    for key, value in where.items():
        stored.external_data.add(key=key, value=str(value))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_BSD"]),
        helper.make_node("Mul", ["attention_mask", inputs[-1]], ["mask_BS"]),
        helper.make_node("Cast", ["mask_BS"], ["weight_BS"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight_BS", "last"], ["weight_BS1"]),
        helper.make_node("Mul", ["token_BSD", "weight_BS1"], ["kept_BSD"]),
        helper.make_node("ReduceSum", ["kept_BSD", "middle"], ["sum_BD"], keepdims=0),
        helper.make_node("ReduceSum", ["weight_BS1", "middle"], ["count_B1"], keepdims=0),
        helper.make_node("Div", ["sum_BD", "count_B1"], ["mean_BD"]),
        helper.make_node("LpNormalization", ["mean_BD"], ["sentence_embedding"], axis=-1, p=2),
    ]
    axes = [
        helper.make_tensor(name, TensorProto.INT64, [1], [axis])
        for name, axis in (("last", 2), ("middle", 1))
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in inputs],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", WIDTH])],
        [stored, *axes],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), stage / LAYOUT.graph)


def write_tokenizer(path: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path))


ToyFactory = Callable[..., Path]


@pytest.fixture
def make_toy_artifact(tmp_path: Path) -> ToyFactory:
    """A function that writes a toy artifact, with a fault if one is asked for."""

    def make(
        *,
        inputs: tuple[str, ...] = ("input_ids", "attention_mask", "pool_mask"),
        prompts: dict[str, str] | None = None,
        infinite_word: str | None = None,
    ) -> Path:
        table = toy_table()
        if infinite_word:
            table[VOCABULARY.index(infinite_word), 3] = np.inf
        manifest = Manifest(
            spec=SPEC if prompts is None else replace(SPEC, prompts=prompts),
            precision=Precision.FP32,
            opset=20,
            pooler_form=PoolerForm.FOLDED,
            linears={},
            weights=WeightsSize(num_parameters=table.size, bytes=table.nbytes),
            recipe={},
            source={"name": "toy"},
            tools={},
            created="2026-11-23T12:00:00+00:00",
        )
        with staged_artifact(tmp_path / "toy", overwrite=True) as stage:
            write_toy(stage, table, inputs)
            write_tokenizer(stage / LAYOUT.tokenizer)
            write_manifest(stage, manifest)
        return tmp_path / "toy"

    return make


@pytest.fixture
def toy_artifact(make_toy_artifact: ToyFactory) -> Path:
    return make_toy_artifact()


@pytest.fixture
def expected_row() -> Callable[..., np.ndarray]:
    """A function from words to the embedding that the toy graph must give."""

    def row(text: str, *, with_bos: bool = True) -> np.ndarray:
        words = [*(["<s>"] if with_bos else []), *text.split(), "</s>"]
        mean = toy_table()[[VOCABULARY.index(word) for word in words]].mean(axis=0)
        return mean / np.linalg.norm(mean)

    return row
