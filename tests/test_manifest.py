"""Tests of nvembed_deploy/manifest.py: a value of a wrong kind is refused by its key."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nvembed_deploy.artifact import LAYOUT, open_artifact, read_manifest
from nvembed_deploy.engine_record import EngineFacts, EngineRecord, Flavour, Profile, Shape
from nvembed_deploy.errors import ArtifactError
from tests.test_artifact import fill

ENGINE = EngineRecord(
    flavour=Flavour.RTX,
    version="1.2",
    targets=("sm89",),
    profiles=(Profile("all", Shape(1, 1), Shape(2, 8), Shape(4, 16)),),
    facts=EngineFacts(1, {"fp8": 2}, 3),
    seconds=1.5,
)
WRONG = ["x", None, -1, 10**30, True, [], {}, ["a"], {"a": 1}, "\0", "\ud800"]
"""What may stand under a key by mistake; each key takes a few of them."""


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    """A manifest with an engine, as JSON."""
    fill(tmp_path)
    data = read_manifest(tmp_path).to_dict() | {"engines": {"engines/sm90.plan": ENGINE.to_dict()}}
    return dict(json.loads(json.dumps(data)))


def read(folder: Path, data: dict[str, Any]) -> None:
    (folder / LAYOUT.manifest).write_text(json.dumps(data))
    open_artifact(folder)


def set_at(data: dict[str, Any], place: Sequence[str], value: object) -> None:
    *way, last = place
    for key in way:
        data = data[key]
    data[last] = value


def test_what_was_written_is_read_back(tmp_path: Path, manifest: dict[str, Any]) -> None:
    read(tmp_path, manifest)
    assert read_manifest(tmp_path).engines == {"engines/sm90.plan": ENGINE}


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("opset", True, "opset is True, expected a whole number"),
        ("linears/fp16", "226", "linears.fp16 is '226', expected a whole number"),
        ("tools/onnx", 1, "tools.onnx is 1, expected a text"),
        ("weights/num_parameters", "x", "weights.num_parameters is 'x', expected a whole number"),
        ("weights/bytes", None, "weights.bytes is None, expected a whole number"),
        ("files", {"a": {"bytes": 1}}, "files['a']: missing keys ['sha256']"),
        ("files", {"a": {"bytes": -1, "sha256": "0"}}, "files['a'].bytes is -1, expected a whole"),
        ("files", {"a": {"bytes": 1, "sha256": None}}, "files['a'].sha256 is None, expected a tex"),
        ("spec", {}, "spec: missing keys ['backbone', 'name', 'pooler', 'prompts', 'text']"),
        ("spec/backbone", {}, "spec.backbone: missing keys ['head_width', 'hidden_size'"),
        ("spec/backbone", None, "spec.backbone is None, expected an object"),
        ("spec/backbone/hidden_size", "x", "spec.backbone.hidden_size is 'x', expected a whole"),
        ("spec/backbone/vocab_size", None, "spec.backbone.vocab_size is None, expected a whole"),
        ("spec/backbone/num_layers", -1, "spec.backbone.num_layers is -1, expected a whole number"),
        ("spec/backbone/max_positions", 10**30, "expected a whole number below 2147483648"),
        ("spec/backbone/rope_theta", float("nan"), "spec.backbone.rope_theta is nan, expected a p"),
        ("spec/backbone/causal", 1, "spec.backbone.causal is 1, expected true or false"),
        ("spec/backbone/head_width", 15, "spec: got 32 query heads of width 15"),
        ("spec/pooler/pooling", [], "spec.pooler.pooling is [], expected one of ['latent'"),
        ("spec/text/bos_id", -1, "spec.text.bos_id is -1, expected a whole number of at least 0"),
        ("spec/text/max_tokens", 2, "spec.text.max_tokens is 2, expected a whole number of at le"),
        ("spec/text/instruction_template", None, "instruction_template is None, expected a text"),
        (
            "spec/text/instruction_template",
            "{task}",
            "instruction_template is '{task}': it has another",
        ),
        ("spec/name", 3, "spec.name is 3, expected a text"),
        ("spec/prompts", None, "spec.prompts is None, expected an object of texts"),
        ("spec/prompts/query", 3, "spec.prompts is {'query': 3}, expected an object of texts"),
        ("engines", {"a": {}}, "engines['a']: missing keys ['facts', 'flavour'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_of_a_wrong_kind_is_refused_by_its_key(
    tmp_path: Path, manifest: dict[str, Any], key: str, value: object, problem: str
) -> None:
    set_at(manifest, key.split("/"), value)
    with pytest.raises(ArtifactError, match=re.escape(problem)) as caught:
        read(tmp_path, manifest)
    assert str(tmp_path / LAYOUT.manifest) in caught.value.problem
    assert "export the checkpoint again" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 1),
        ("targets", [89]),
        ("targets", "sm89"),
        ("profiles", [3]),
        ("facts", {"fused_attention": 1, "linears": 3, "kernels": 1}),
        ("facts", {"fused_attention": 1, "linears": {"fp8": "x"}, "kernels": 1}),
        ("seconds", "x"),
        ("gpu", 4),
        ("options", None),
    ],
)
def test_an_engine_of_a_wrong_kind_is_refused(
    tmp_path: Path, manifest: dict[str, Any], key: str, value: object
) -> None:
    manifest["engines"]["engines/sm90.plan"][key] = value
    with pytest.raises(ArtifactError, match=key.removesuffix("s")):
        read(tmp_path, manifest)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\0b", "\ud800", "a//b", "a" * 5000],
    ids=lambda name: ascii(name)[:20],
)
@pytest.mark.parametrize("key", ["files", "engines"])
def test_a_name_that_no_file_of_the_folder_has_is_refused(
    tmp_path: Path, manifest: dict[str, Any], key: str, name: str
) -> None:
    manifest[key][name] = next(iter(manifest[key].values()))
    with pytest.raises(ArtifactError, match=rf"{key} has the name {re.escape(repr(name)[:40])}"):
        read(tmp_path, manifest)


def places(data: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the way to each value that a parser looks at."""
    yield above
    if isinstance(data, dict):
        for key, value in data.items():
            if above or key not in {"recipe", "source", "check", "parity"}:
                yield from places(value, (*above, key))


def test_whatever_stands_anywhere_is_taken_or_refused_with_what_to_do(
    tmp_path: Path, manifest: dict[str, Any]
) -> None:
    refused = 0
    for place in [way for way in places(manifest) if way]:
        for value in WRONG:
            data = copy.deepcopy(manifest)
            set_at(data, place, value)
            try:
                read(tmp_path, data)
            except ArtifactError as error:
                refused += 1
                assert str(tmp_path) in error.problem
    assert refused > 400
