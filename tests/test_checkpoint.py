"""Tests of nvembed_deploy/checkpoint.py: which folders are checkpoints, and what is wrong."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvembed_deploy.checkpoint import DESCRIPTION, open_checkpoint
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.model.names import released_name
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import PoolerSpec, Pooling
from tests import factories

KEY = released_name("backbone.layers.1.mlp.up_proj.weight")
INDEX = "model.safetensors.index.json"
Fault = Callable[[Path], object]


@pytest.fixture
def released(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the released checkpoint, to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "released")


@pytest.fixture
def assembled(tiny_base: Path, tiny_pooler: Path, tmp_path: Path) -> Path:
    """An assembled checkpoint whose parts are inside it, to damage."""
    folder = tmp_path / "assembled"
    shutil.copytree(tiny_base, folder / "base")
    shutil.copy(tiny_pooler, folder / "pooler.safetensors")
    description = {
        "schema_version": 1,
        "base": "base",
        "pooler": "pooler.safetensors",
        "pooler_spec": {"num_latents": 12, "num_heads": 2, "head_width": 64, "feed_width": 256},
    }
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def replant(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of the shard that holds KEY; the index follows."""
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"][KEY]
    tensors = load_file(folder / shard)
    change(tensors)
    save_file(tensors, folder / shard)
    kept = {key: name for key, name in index["weight_map"].items() if name != shard}
    index["weight_map"] = kept | dict.fromkeys(tensors, shard)
    (folder / INDEX).write_text(json.dumps(index))


def to_bin(folder: Path) -> None:
    (folder / INDEX).unlink()
    for shard in folder.glob("*.safetensors"):
        shard.rename(
            folder / shard.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        )


def cut(folder: Path) -> None:
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][KEY]
    shard.write_bytes(shard.read_bytes()[:-8])


def escape(folder: Path) -> None:
    edit(folder / INDEX, lambda d: d["weight_map"].update({KEY: "../model.safetensors"}))


RELEASED: dict[str, tuple[Fault, list[str]]] = {
    "no text_config": (
        lambda f: edit(f / "config.json", lambda d: d.pop("text_config")),
        ["config.json", "text_config is missing"],
    ),
    "a family whose code would have to run": (
        lambda f: edit(
            f / "config.json",
            lambda d: d["text_config"].update(
                model_type="phi3", auto_map={"AutoModel": "evil.Model"}
            ),
        ),
        ["config.json", "'phi3'", "code from its folder, which is never run", "'mistral'"],
    ),
    "only pickles": (
        to_bin,
        ["pytorch_model-0000", "is a pickled torch file", "nothing is ever unpickled"],
    ),
    "an absent shard": (
        lambda f: edit(f / INDEX, lambda d: d["weight_map"].update({KEY: "gone.safetensors"})),
        ["1 of the 3 shards", INDEX, "gone.safetensors"],
    ),
    "a shard outside the folder": (escape, [INDEX, "weight_map", "file names"]),
    "a missing tensor": (
        lambda f: replant(f, lambda t: t.pop(KEY)),
        ["missing backbone.layers.1.mlp.up_proj.weight", "[96, 64]"],
    ),
    "an extra tensor": (
        lambda f: replant(f, lambda t: t.update(extra=np.zeros(3, np.float16))),
        ["unexpected extra"],
    ),
    "another shape": (
        lambda f: replant(f, lambda t: t.update({KEY: np.zeros((95, 64), np.float16)})),
        ["backbone.layers.1.mlp.up_proj.weight", "got shape [95, 64]", "[96, 64]"],
    ),
    "a cut shard": (cut, ["model-0000", "of-00002.safetensors", "it is cut"]),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["has no tokenizer.json"]),
    "no weights": (
        lambda f: [p.unlink() for p in f.glob("model*")],
        ["released", "safetensors"],
    ),
}


@pytest.mark.parametrize(("fault", "named"), RELEASED.values(), ids=RELEASED)
def test_a_fault_in_the_released_layout_is_named(
    released: Path, fault: Fault, named: list[str]
) -> None:
    open_weights(open_checkpoint(released))
    fault(released)
    with pytest.raises(CheckpointError) as caught:
        open_weights(open_checkpoint(released))
    for word in named:
        assert word in caught.value.problem
    assert caught.value.fix


def test_nan_in_the_released_layout_is_named_with_its_place(released: Path) -> None:
    replant(released, lambda tensors: tensors[KEY].__setitem__((7, 5), np.nan))
    weights = open_weights(open_checkpoint(released))
    with pytest.raises(CheckpointError, match=r"up_proj.*model-0000\d.*nan at \(7, 5\)"):
        weights.read("backbone.layers.1.mlp.up_proj.weight")


def test_code_beside_the_weights_is_never_run(released: Path) -> None:
    proof = released / "ran"
    for name in ("modeling_nvembed.py", "configuration_nvembed.py", "__init__.py"):
        (released / name).write_text(f"open({str(proof)!r}, 'w')\n")
    weights = open_weights(open_checkpoint(released))
    weights.read("backbone.norm.weight")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text("x"), "is a file, expected a folder"),
        (lambda p: p.mkdir(), "has neither checkpoint.json nor config.json"),
        (
            factories.write_base,
            "config.json: got model_type 'mistral', expected 'nvembed'",
        ),
    ],
    ids=["missing", "file", "empty", "plain-decoder"],
)
def test_what_is_no_checkpoint_is_refused_with_what_to_do(
    tmp_path: Path, make: Fault, problem: str
) -> None:
    make(tmp_path / "it")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "it")
    assert str(tmp_path / "it") in caught.value.problem
    assert problem in caught.value.problem
    assert "checkpoint folder" in caught.value.fix or "assemble" in caught.value.fix


def test_the_command_that_is_the_fix_can_be_pasted(tmp_path: Path) -> None:
    base = factories.write_base(tmp_path / "my base")
    for path in (base, base / "config.json"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        _, command = caught.value.fix.split(": ")
        assert shlex.split(command) == ["nvembed-deploy", "assemble", str(path), "OUT"]


def test_an_assembled_folder_reads_as_its_parts(assembled: Path) -> None:
    checkpoint = open_checkpoint(assembled)
    assert checkpoint.spec.name == "assembled"
    assert checkpoint.spec.pooler == factories.TINY.pooler
    assert checkpoint.tokenizer == (assembled / "base" / "tokenizer.json").resolve()
    weights = open_weights(checkpoint)
    for name, array in factories.weights().items():
        assert np.array_equal(weights.read(name), array), name


def test_the_description_changes_text_and_pooler(assembled: Path) -> None:
    edit(
        assembled / DESCRIPTION,
        lambda d: d.update(
            name="mine",
            text={"instruction_template": "{instruction}: ", "max_tokens": 64},
            prompts={"query": "Query: "},
        ),
    )
    spec = open_checkpoint(assembled).spec
    assert (spec.name, spec.prompts) == ("mine", {"query": "Query: "})
    assert (spec.text.instruction_template, spec.text.max_tokens) == ("{instruction}: ", 64)


ASSEMBLED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another schema": ({"schema_version": 2}, ["got schema_version 2, expected 1"]),
    "no schema": ({"schema_version": None}, ["got schema_version None"]),
    "an unknown key": ({"lora": "adapter"}, ["unknown keys ['lora']"]),
    "a base that is not there": ({"base": "gone"}, ["base 'gone' leads to", "does not exist"]),
    "a base of a wrong kind": ({"base": 7}, ["base is 7, expected a text or null"]),
    "no base": ({"base": None}, ["'base' is None, expected a path"]),
    "an adapter that is not there": ({"adapter": "lora"}, ["adapter 'lora'", "does not exist"]),
    "a pooler that is not there": ({"pooler": "p.bin"}, ["pooler 'p.bin'", "does not exist"]),
    "an unknown size": ({"pooler_spec": {"latents": 1}}, ["pooler_spec.latents is 1", "no such"]),
    "a size of zero": ({"pooler_spec": {"num_heads": 0}}, ["pooler_spec.num_heads is 0"]),
    "a size that is a truth": ({"pooler_spec": {"num_heads": True}}, ["num_heads is True"]),
    "an unknown pooling": ({"pooler_spec": {"pooling": "max"}}, ["pooler_spec.pooling is 'max'"]),
    "a pooling is one of four": (
        {"pooler_spec": {"pooling": "max"}},
        ["expected one of ['latent', 'mean', 'eos', 'self-attention']"],
    ),
    "an unknown truncation": (
        {"text": {"truncation": "foo"}},
        ["text.truncation is 'foo', expected one of ['keep_eos', 'reference']"],
    ),
    "no room for a token": (
        {"text": {"max_tokens": 2}},
        ["text.max_tokens is 2, expected a whole number of at least 3"],
    ),
    "an epsilon of zero": (
        {"pooler_spec": {"layer_norm_eps": 0}},
        ["layer_norm_eps is 0, expected a positive number"],
    ),
    "a template of a wrong kind": (
        {"text": {"instruction_template": 1}},
        ["instruction_template is 1, expected a text"],
    ),
    "a name of two lines": ({"name": "a\nb"}, ["the name 'a\\nb' is not one line"]),
    "a prompt's name of two lines": ({"prompts": {"a\nb": ""}}, ["the name 'a\\nb' is not one"]),
    "a token below zero": ({"text": {"eos_id": -1}}, ["text.eos_id is -1"]),
    "a template without place": (
        {"text": {"instruction_template": "Query: "}},
        ["'Query: '", "it has no {instruction}"],
    ),
    "a template with another place": (
        {"text": {"instruction_template": "{task}"}},
        ["'{task}'", "another place than {instruction}"],
    ),
    "a template that fills memory": (
        {"text": {"instruction_template": "{instruction:>99999999999}"}},
        ["another place than {instruction}"],
    ),
    "a template with half a place": (
        {"text": {"instruction_template": "{instruction"}},
        ["text.instruction_template is '{instruction': expected '}'"],
    ),
    "a prompt of a wrong kind": ({"prompts": {"query": 3}}, ["prompts.query is 3, expected a"]),
}


@pytest.mark.parametrize(("change", "named"), ASSEMBLED.values(), ids=ASSEMBLED)
def test_a_fault_in_the_description_is_named(
    assembled: Path, change: dict[str, Any], named: list[str]
) -> None:
    edit(assembled / DESCRIPTION, lambda d: d.update(change))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(assembled)
    for word in [str(assembled / DESCRIPTION), *named]:
        assert word in caught.value.problem
    assert caught.value.fix


def test_sizes_that_do_not_fit_the_pooler_are_refused_with_both(assembled: Path) -> None:
    edit(assembled / DESCRIPTION, lambda d: d["pooler_spec"].update(num_latents=13))
    with pytest.raises(CheckpointError, match=r"pooler\.latents.*\[12, 64\].*\[13, 64\]"):
        open_weights(open_checkpoint(assembled))
    edit(assembled / DESCRIPTION, lambda d: d.pop("pooler_spec"))
    assert open_checkpoint(assembled).spec.pooler == PoolerSpec()


def test_a_released_folder_can_be_a_base_without_its_pooler(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = PoolerSpec(pooling=Pooling.MEAN)
    assemble_checkpoint(Parts(tiny_checkpoint, pooler_spec=spec), tmp_path / "out")
    found = open_weights(open_checkpoint(tmp_path / "out"))
    whole = open_weights(open_checkpoint(tiny_checkpoint))
    assert set(found.shapes) == {n for n in whole.shapes if n.startswith("backbone.")}
    assert all(np.array_equal(found.read(n), whole.read(n)) for n in found.shapes)


def test_a_model_in_the_hub_s_cache_is_called_as_on_the_hub(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    blobs, snapshot = (tmp_path / "models--nvidia--NV-Embed-v2" / n for n in ("blobs", "snapshots"))
    shutil.copytree(tiny_checkpoint, blobs)
    (snapshot / "3fa9").mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / "3fa9" / file.name).symlink_to(f"../../blobs/{file.name}")
    checkpoint = open_checkpoint(snapshot / "3fa9")
    assert checkpoint.spec.name == "NV-Embed-v2"
    assert open_weights(checkpoint).read("pooler.latents").any()
    own = blobs.parent.rename(tmp_path / "me") / "snapshots" / "3fa9"  # no cache: a folder's name
    assert open_checkpoint(own).spec.name == "3fa9"


def test_a_checkpoint_is_no_base(assembled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a checkpoint itself") as caught:
        assemble_checkpoint(Parts(assembled), tmp_path / "out")
    assert caught.value.fix.startswith("export it as it is")


def test_a_decoder_described_in_its_own_folder_is_its_base(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "mine"))
    description = {"schema_version": 1, "base": ".", "pooler_spec": {"pooling": "mean"}}
    (folder / DESCRIPTION).write_text(json.dumps(description))
    assert open_weights(open_checkpoint(folder)).spec.name == "mine"
