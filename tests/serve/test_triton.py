"""Tests of NV-Embed as a model of Triton's, with Triton's few types played.

The server itself runs in tests/real/test_triton.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nvembed_deploy import RuntimeOptions, load_encoder
from nvembed_deploy.errors import ArtifactError, InputError
from nvembed_deploy.runtimes.encoder import Encoder
from nvembed_deploy.serve.triton import Item, Settings, TritonPythonModel, answer, embed

WORDS = ["water boils", "", "a", "Lava flows downhill", "one two three"]


@dataclass
class Tensor:
    """Triton's: a name and an array."""

    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class Error:
    """Triton's: words and a code."""

    INVALID_ARG, INTERNAL = "400", "500"

    words: str
    code: str


@dataclass
class Response:
    """Triton's: tensors, or an error."""

    tensors: list[Tensor]
    error: Error | None = None


PLAYED = SimpleNamespace(
    Tensor=Tensor,
    InferenceResponse=Response,
    TritonError=Error,
    get_input_tensor_by_name=lambda request, name: request.get(name),
)


def request(texts: list[bytes], instructions: list[bytes] | None = None) -> dict[str, Tensor]:
    given = (
        {"TEXT": texts} if instructions is None else {"TEXT": texts, "INSTRUCTION": instructions}
    )
    return {
        name: Tensor(name, np.array(values, dtype=object)[:, None])
        for name, values in given.items()
    }


def arguments(folder: Path, kind: str = "CPU", **parameters: str) -> dict[str, str]:
    entries = {name: {"string_value": value} for name, value in parameters.items()}
    return {
        "model_config": json.dumps({"parameters": entries}),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "1",
    }


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Path) -> Iterator[Encoder]:
    with load_encoder(tiny_artifact, device="cpu") as encoder:
        yield encoder


@pytest.fixture
def model(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonPythonModel]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", PLAYED)
    model = TritonPythonModel()
    model.initialize(arguments(tiny_artifact.parent, artifact=str(tiny_artifact)))
    yield model
    model.finalize()


def test_each_request_is_answered_with_its_own_texts(
    model: TritonPythonModel, encoder: Encoder
) -> None:
    texts = [[b"water boils", b""], [b"a"], [b"Lava flows downhill", b"a", b"one two three"]]
    answers = model.execute([request(some) for some in texts])
    assert [response.error for response in answers] == [None] * 3
    for response, some in zip(answers, texts, strict=True):
        (rows,) = response.tensors
        assert rows.name == "EMBEDDING"
        expected = encoder.encode([text.decode() for text in some])
        np.testing.assert_allclose(rows.array, expected, atol=1e-6)
        assert rows.array.dtype == np.float32


def test_an_instruction_is_of_its_text_alone_and_an_empty_one_is_none(
    model: TritonPythonModel, encoder: Encoder
) -> None:
    texts, tasks = [b"a", b"a", b"a"], [b"find", b"", "más".encode()]
    ((rows,),) = (r.tensors for r in model.execute([request(texts, tasks)]))
    for row, task in zip(rows.array, ("find", None, "más"), strict=True):
        np.testing.assert_allclose(row, encoder.encode("a", instruction=task), atol=1e-6)
    assert not np.allclose(rows.array[0], rows.array[1], atol=1e-3)


@pytest.mark.parametrize(
    ("texts", "tasks", "words"),
    [
        ([b"a", b"\xff\xfe"], None, "no UTF-8"),
        ([b"a"], [b"\xff"], "no UTF-8"),
        ([], [b"find"], "0 TEXT came with 1 INSTRUCTION"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_the_others_answered(
    model: TritonPythonModel, texts: list[bytes], tasks: list[bytes] | None, words: str
) -> None:
    good, bad = request([b"a"]), request(texts, tasks)
    answers = model.execute([good, bad, good])
    assert [response.error is None for response in answers] == [True, False, True]
    assert words in answers[1].error.words
    assert answers[1].error.code == Error.INVALID_ARG
    assert answers[1].tensors == []
    np.testing.assert_array_equal(answers[0].tensors[0].array, answers[2].tensors[0].array)


def test_a_request_that_cannot_be_embedded_spoils_no_other(encoder: Encoder) -> None:
    class Picky(Encoder):
        def encode(self, inputs, *_, **options):
            if "poison" in inputs:
                raise ArtifactError("an embedding is not finite", "take bf16")
            return encoder.encode(inputs, **options)

    picky = Picky(encoder.runtime, encoder.tokenizer, spec=encoder.spec)
    requests = [[Item("a", "")], [Item("b", ""), Item("poison", "")], [Item("a", "")]]
    first, second, third = answer(picky, requests)
    assert isinstance(second, ArtifactError)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_allclose(first, encoder.encode(["a"]), atol=1e-6)


def test_texts_of_one_instruction_are_one_call_whoever_asks(encoder: Encoder) -> None:
    calls = []

    class Counting(Encoder):
        def encode(self, inputs, *_, **options):
            calls.append(len(inputs))
            return encoder.encode(inputs, **options)

    counting = Counting(encoder.runtime, encoder.tokenizer, spec=encoder.spec)
    items = [Item(text, "find" if i % 2 else "") for i, text in enumerate(WORDS * 2)]
    rows_ND = embed(counting, items)
    assert sorted(calls) == [5, 5]
    for row, item in zip(rows_ND, items, strict=True):
        alone = encoder.encode(item.text, instruction=item.instruction or None)
        np.testing.assert_allclose(row, alone, atol=1e-6)


@pytest.mark.parametrize(("kind", "device"), [("CPU", "cpu"), ("GPU", "cuda:1"), ("MODEL", None)])
def test_an_instance_is_where_triton_starts_it(kind: str, device: str | None) -> None:
    assert Settings.of(arguments(Path("models/nv-embed"), kind)).options.device == device


def test_parameters_are_read_and_the_artifact_lies_in_the_version() -> None:
    folder = Path("models/nv-embed")
    assert Settings.of(arguments(folder)) == Settings(
        folder / "1/artifact", "auto", RuntimeOptions(device="cpu")
    )
    given = {
        "artifact": "/else",
        "runtime": "onnx",
        "options": '{"threads": 2, "device": "cuda:0"}',
    }
    options = RuntimeOptions(device="cuda:0", threads=2)
    assert Settings.of(arguments(folder, **given)) == Settings(Path("/else"), "onnx", options)


@pytest.mark.parametrize("options", ["{", "[]", "7", '{"treads": 2}', '{"threads": "two"}'])
def test_options_that_cannot_be_read_are_refused(options: str) -> None:
    with pytest.raises(InputError, match=r"options|threads"):
        Settings.of(arguments(Path("models"), options=options))


def test_a_parameter_that_nobody_reads_is_refused() -> None:
    with pytest.raises(InputError, match="artefact"):
        Settings.of(arguments(Path("models"), artefact="/else"))
    Settings.of(arguments(Path("models"), FORCE_CPU_ONLY_INPUT_TENSORS="yes"))
