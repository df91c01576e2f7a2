"""Tests of nvembed_deploy/model/assemble.py: parts become a checkpoint, or nothing does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.checkpoint import DESCRIPTION, open_checkpoint
from nvembed_deploy.errors import ArtifactError, CheckpointError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint, write_fresh_pooler
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.spec import PoolerSpec, Pooling
from tests import factories
from tests.model.test_adapter import write_adapter

TINY = factories.TINY


@pytest.fixture
def parts(tiny_base: Path, tiny_pooler: Path) -> Parts:
    return Parts(tiny_base, pooler=tiny_pooler, pooler_spec=TINY.pooler)


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_folder_holds_exactly_its_parts(tmp_path: Path, parts: Parts) -> None:
    spec = assemble_checkpoint(replace(parts, prompts={"query": "Q: "}), tmp_path / "out")
    assert spec == open_checkpoint(tmp_path / "out").spec
    assert (spec.name, spec.backbone, spec.pooler) == ("out", TINY.backbone, TINY.pooler)
    assert spec.prompts == {"query": "Q: "}
    assert listing(tmp_path / "out") == [DESCRIPTION, "pooler.safetensors", "tokenizer.json"]


def test_a_folder_with_its_base_inside_may_be_moved(tmp_path: Path, parts: Parts) -> None:
    base = shutil.copytree(parts.base, tmp_path / "base")
    (base / "config.json").rename(tmp_path / "blob")  # as the hub's cache has them
    (base / "config.json").symlink_to("../blob")
    (base / "README.md").symlink_to("../cleared")
    write_adapter(base, tmp_path / "lora")
    parts = replace(parts, base=base, adapter=tmp_path / "lora")
    assemble_checkpoint(parts, tmp_path / "out", copy_base=True)
    for part in (base, tmp_path / "lora"):
        shutil.rmtree(part)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    moved = (tmp_path / "out").rename(tmp_path / "deep" / "er" / "moved")
    weights = open_weights(open_checkpoint(moved))
    for name in weights.shapes:
        assert np.isfinite(weights.read(name)).all()


def test_a_base_elsewhere_is_named_relative_to_the_folder(tmp_path: Path, parts: Parts) -> None:
    base = shutil.copytree(parts.base, tmp_path / "models" / "base")
    assemble_checkpoint(replace(parts, base=base), tmp_path / "out")
    described = json.loads((tmp_path / "out" / DESCRIPTION).read_text())
    assert described["base"] == "../models/base"


def test_text_rules_and_a_tokenizer_take_the_place_of_the_bases(
    tmp_path: Path, parts: Parts
) -> None:
    text = replace(TINY.text, instruction_template="{instruction}: ", max_tokens=64)
    tokenizer = tmp_path / "trained.json"
    tokenizer.write_text((parts.base / "tokenizer.json").read_text() + "\n")
    out = tmp_path / "out"
    spec = assemble_checkpoint(replace(parts, text=text, tokenizer=tokenizer), out)
    assert spec.text == open_checkpoint(out).spec.text == text
    described = json.loads((out / DESCRIPTION).read_text())
    assert described["text"] == {"instruction_template": "{instruction}: ", "max_tokens": 64}
    assert open_checkpoint(out).tokenizer == out / "tokenizer.json"
    assert (out / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_decoder_stays_one(tmp_path: Path, parts: Parts, causal: bool) -> None:
    spec = assemble_checkpoint(replace(parts, causal=causal), tmp_path / "out")
    assert spec.backbone.causal is open_checkpoint(tmp_path / "out").spec.backbone.causal is causal


def test_text_rules_of_the_base_are_not_repeated(tmp_path: Path, parts: Parts) -> None:
    assemble_checkpoint(replace(parts, text=TINY.text), tmp_path / "out")
    assert "text" not in json.loads((tmp_path / "out" / DESCRIPTION).read_text())


def test_a_shard_given_as_a_pooler_is_refused_and_named(tmp_path: Path, parts: Parts) -> None:
    released = factories.write_released(tmp_path / "released", num_shards=1)
    (shard,) = released.glob("*.safetensors")
    with pytest.raises(CheckpointError, match=f"{shard} is to be a pooler, but holds 29 tensors"):
        assemble_checkpoint(replace(parts, pooler=shard), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [released]


def test_a_fresh_pooler_is_seeded_and_nearly_the_mean(tmp_path: Path, parts: Parts) -> None:
    texts = ["the cat sat on the mat", "another text", "a"]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_fresh_pooler(path, TINY.pooler, TINY.backbone, seed)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    assemble_checkpoint(replace(parts, pooler=None), tmp_path / "fresh")
    with load_encoder(tmp_path / "fresh") as encoder:
        fresh = encoder.encode(texts)
    description = tmp_path / "fresh" / DESCRIPTION
    data = json.loads(description.read_text())
    data["pooler_spec"]["pooling"] = "mean"
    description.write_text(json.dumps(data))
    with load_encoder(tmp_path / "fresh") as encoder:
        mean = encoder.encode(texts)
    assert (fresh * mean).sum(1).min() >= 0.999


@pytest.mark.parametrize("part", ["base", "adapter", "pooler", "tokenizer"])
def test_a_part_that_is_not_there_is_named(tmp_path: Path, parts: Parts, part: str) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(CheckpointError, match=f"{gone} does not exist"):
        assemble_checkpoint(replace(parts, **{part: gone}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_leave_nothing(tmp_path: Path, parts: Parts) -> None:
    latents = r"pooler\.latents in pooler\.safetensors: got shape \[12, 64\], expected \[13, 64\]"
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=f"(?s){out}: .*{latents}"):
        assemble_checkpoint(replace(parts, pooler_spec=replace(TINY.pooler, num_latents=13)), out)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_does_not_fit_costs_no_pooler_and_no_copy(tmp_path: Path, parts: Parts) -> None:
    """A fresh pooler of this size fits no memory."""
    base = shutil.copytree(parts.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": 319}))
    large = replace(TINY.pooler, num_latents=2**31 - 1)
    parts = replace(parts, base=base, pooler=None, pooler_spec=large)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight in model\.safetensors: got"):
        assemble_checkpoint(parts, tmp_path / "out", copy_base=True)
    assert list(tmp_path.iterdir()) == [base]


def test_a_pooler_for_a_model_without_one_is_refused(tmp_path: Path, parts: Parts) -> None:
    parts = replace(parts, pooler_spec=PoolerSpec(pooling=Pooling.MEAN))
    with pytest.raises(
        CheckpointError, match=r"unexpected pooler\.key_value.* in pooler\.safetensors"
    ):
        assemble_checkpoint(parts, tmp_path / "out")


def test_links_that_lead_nowhere_are_not_copied(tmp_path: Path, parts: Parts) -> None:
    write_adapter(parts.base, tmp_path / "lora")
    (tmp_path / "lora" / "run.log").symlink_to("../cleared")
    assemble_checkpoint(replace(parts, adapter=tmp_path / "lora"), tmp_path / "out")
    assert "run.log" not in listing(tmp_path / "out" / "adapter")


def test_an_error_names_the_parts_that_were_given(tmp_path: Path, parts: Parts) -> None:
    adapter, trained = tmp_path / "lora", tmp_path / "trained.safetensors"
    adapter.mkdir()
    with pytest.raises(CheckpointError, match=f"{adapter}/adapter_config.json does not exist"):
        assemble_checkpoint(replace(parts, adapter=adapter), tmp_path / "out")
    wide = replace(TINY, pooler=replace(TINY.pooler, num_latents=13))
    pooler = factories.write_pooler(trained, wide)
    with pytest.raises(CheckpointError, match=r"latents in trained\.safetensors: got") as caught:
        assemble_checkpoint(replace(parts, pooler=pooler), tmp_path / "out")
    assert "1 tensor does not fit the config" in caught.value.problem
    assert caught.value.fix.startswith("correct pooler_spec")
    trained.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=str(trained)):
        assemble_checkpoint(replace(parts, pooler=trained), tmp_path / "out")
    base = shutil.copytree(parts.base, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=f"{base}/model.safetensors"):
        assemble_checkpoint(replace(parts, base=base), tmp_path / "out", copy_base=True)


def test_an_existing_checkpoint_is_replaced_only_when_asked(tmp_path: Path, parts: Parts) -> None:
    out = tmp_path / "out"
    assemble_checkpoint(replace(parts, name="old"), out)
    with pytest.raises(ArtifactError, match="exists already"):
        assemble_checkpoint(replace(parts, name="new"), out)
    assert open_checkpoint(out).spec.name == "old"
    assemble_checkpoint(replace(parts, name="new"), out, overwrite=True)
    assert open_checkpoint(out).spec.name == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, parts: Parts) -> None:
    base = shutil.copytree(parts.base, tmp_path / "base")
    with pytest.raises(ArtifactError, match=r"it has no checkpoint\.json"):
        assemble_checkpoint(parts, base, overwrite=True)
    assert listing(base) == listing(parts.base)


def test_a_description_of_something_else_is_never_replaced(tmp_path: Path, parts: Parts) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / DESCRIPTION).write_text('{"step": 100, "weights": "model.bin"}')
    with pytest.raises(ArtifactError, match=r"something else made its checkpoint\.json"):
        assemble_checkpoint(parts, out, overwrite=True)
    assert listing(out) == [DESCRIPTION]


@pytest.mark.parametrize("copied", [False, True])
def test_files_that_a_checkpoint_does_not_name_are_named_and_kept(
    tmp_path: Path, parts: Parts, copied: bool
) -> None:
    out = tmp_path / "out"
    write_adapter(parts.base, tmp_path / "lora")
    parts = replace(parts, adapter=tmp_path / "lora")
    for _ in range(2):
        assemble_checkpoint(parts, out, copy_base=copied, overwrite=True)
    (out / "notes").mkdir()
    (out / "notes" / "README.md").touch()
    with pytest.raises(
        ArtifactError, match=r"it holds notes/README\.md, which something else made"
    ):
        assemble_checkpoint(parts, out, overwrite=True)
    assert (out / "notes" / "README.md").exists()


def test_a_base_that_is_described_by_the_folder_itself_is_kept(
    tmp_path: Path, parts: Parts
) -> None:
    out = Path(shutil.copytree(parts.base, tmp_path / "out"))
    (out / DESCRIPTION).write_text('{"schema_version": 1, "base": "."}')
    with pytest.raises(ArtifactError, match=r"it holds config\.json, model\.safetensors, which"):
        assemble_checkpoint(parts, out, overwrite=True)
    assert listing(out) == [DESCRIPTION, *listing(parts.base)]


@pytest.mark.parametrize("part", ["base", "adapter", "pooler", "tokenizer"])
def test_a_part_inside_the_folder_that_is_replaced_is_refused(
    tmp_path: Path, parts: Parts, part: str
) -> None:
    out = tmp_path / "out"
    write_adapter(parts.base, tmp_path / "lora")
    assemble_checkpoint(replace(parts, adapter=tmp_path / "lora"), out, copy_base=True)
    names = {"base": "base", "adapter": "adapter", "pooler": "pooler.safetensors"}
    inside = out / names.get(part, "tokenizer.json")
    before = listing(out)
    with pytest.raises(ArtifactError, match=f"the {part} {inside} lies there"):
        assemble_checkpoint(replace(parts, **{part: inside}), out, overwrite=True)
    assert listing(out) == before


def test_copying_a_base_into_itself_is_refused(tmp_path: Path, parts: Parts) -> None:
    base = shutil.copytree(parts.base, tmp_path / "base")
    with pytest.raises(CheckpointError, match="cannot be copied into itself"):
        assemble_checkpoint(replace(parts, base=base), base / "out", copy_base=True)
    assert listing(base) == listing(parts.base)
