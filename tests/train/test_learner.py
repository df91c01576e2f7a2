"""Tests of nvembed_deploy/train/learner.py: what is trained, and that its checkpoint is it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Tokenizers

from nvembed_deploy import load_encoder
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import CheckpointError, RecipeError
from nvembed_deploy.export.pipeline import run_export
from nvembed_deploy.export.plan import plan_export
from nvembed_deploy.export.recipe import ExportRecipe
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.spec import Pooling, Precision
from nvembed_deploy.text import Tokenizer
from nvembed_deploy.train.gradcache import embedder
from nvembed_deploy.train.learner import Learner, open_learner, save_checkpoint, whole_weights
from nvembed_deploy.train.recipe import TrainRecipe
from tests import factories
from tests.model.test_adapter import write_adapter
from tests.train import pairs

ADAPTER = Path("adapter", "adapter_model.safetensors")
CPU = torch.device("cpu")
TEXTS = ["the cat sat on a mat", "another text", "many words"]


def opened(base: Path, folder: Path, **model: object) -> tuple[Learner, Tokenizer]:
    recipe = pairs.recipe(base, folder, folder / "run", model=model)
    return shaken(open_learner(recipe, torch.float32, CPU))


def shaken(pair: tuple[Learner, Tokenizer]) -> tuple[Learner, Tokenizer]:
    """Move everything that is trained away from its beginning."""
    torch.manual_seed(1)
    for parameter in pair[0].trained().values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pair[0].eval()
    return pair


def embed(learner: Learner, tokenizer: Tokenizer) -> np.ndarray:
    with torch.no_grad():
        rows = tokenizer.tokenize(TEXTS, "find it")
        return embedder(learner, tokenizer.spec.pad_id, CPU)(rows).numpy()


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("mask", ["bidirectional", "causal"])
def test_a_saved_checkpoint_embeds_as_the_learner(
    tiny_base: Path, tmp_path: Path, pooling: Pooling, mask: str
) -> None:
    learner, tokenizer = opened(tiny_base, tmp_path, pooling=pooling.value, mask=mask)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    spec = open_checkpoint(tmp_path / "out").spec
    assert (spec.pooler.pooling, spec.backbone.causal) == (pooling, mask == "causal")
    with load_encoder(tmp_path / "out", "torch", device="cpu") as encoder:
        found = encoder.encode(TEXTS, instruction="find it")
    assert np.abs(found - embed(learner, tokenizer)).max() <= 2e-6


def test_export_takes_it_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    learner, tokenizer = opened(tiny_base, tmp_path)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    recipe = ExportRecipe(precision=Precision.FP32)
    run_export(plan_export(tmp_path / "out", recipe), tmp_path / "artifact")
    with load_encoder(tmp_path / "artifact", "onnx") as encoder:
        found = encoder.encode(TEXTS, instruction="find it")
    assert np.abs(found - embed(learner, tokenizer)).max() <= 5e-6


@pytest.mark.parametrize(("pooling", "mask"), [("eos", "bidirectional"), ("latent", "causal")])
def test_no_graph_is_written_for_an_ablation(
    tiny_base: Path, tmp_path: Path, pooling: str, mask: str
) -> None:
    learner, _ = opened(tiny_base, tmp_path, pooling=pooling, mask=mask)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    with pytest.raises(CheckpointError, match="no graph is written for it"):
        plan_export(tmp_path / "out", ExportRecipe())


def test_adapter_and_pooler_learn_and_nothing_else(tiny_base: Path, tmp_path: Path) -> None:
    learner, _ = opened(tiny_base, tmp_path)
    trained = set(learner.trained())
    assert {n.split(".")[0] for n in trained} == {"backbone", "pooler"}
    assert all("lora_" in n or n.startswith("pooler.") for n in trained)
    assert len([n for n in trained if "lora_" in n]) == 3 * 7 * 2
    config = learner.config
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.1)
    adapter, pooler = learner.groups(1e-3, 1e-4)
    assert (adapter["lr"], pooler["lr"]) == (1e-3, 1e-4)
    assert len(adapter["params"]) + len(pooler["params"]) == len(trained)


def test_a_second_stage_begins_where_the_first_ended(tiny_base: Path, tmp_path: Path) -> None:
    first, tokenizer = opened(tiny_base, tmp_path)
    save_checkpoint(first, whole_weights(first), tmp_path / "one")
    values = pairs.values(tiny_base, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "one")}, {"dropout": 0.2}
    recipe = TrainRecipe.model_validate(values)
    second, _ = open_learner(recipe, torch.float32, CPU)
    drops = {m.p for m in second.modules() if isinstance(m, torch.nn.Dropout) and m.training}
    assert drops == {0.2}
    second.eval()
    assert np.abs(embed(second, tokenizer) - embed(first, tokenizer)).max() <= 1e-6
    assert {n: p.shape for n, p in second.trained().items()} == {
        n: p.shape for n, p in first.trained().items()
    }
    save_checkpoint(second, whole_weights(second), tmp_path / "two")
    one, two = ((tmp_path / name / ADAPTER).read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_pooler_begins_as_it_was_saved_where_the_decoder_is_bfloat16(
    tiny_base: Path, tmp_path: Path
) -> None:
    first, _ = opened(tiny_base, tmp_path)
    saved = whole_weights(first)
    save_checkpoint(first, saved, tmp_path / "one")
    values = pairs.values(tiny_base, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "one")}, {}
    second, _ = open_learner(TrainRecipe.model_validate(values), torch.bfloat16, CPU)
    assert second.model.backbone.decoder.norm.weight.dtype is torch.bfloat16
    begun = whole_weights(second)
    assert {name for name in saved if not torch.equal(begun[name], saved[name])} == set()


def test_training_goes_on_from_a_dora_adapter_that_peft_saved(
    tiny_base: Path, tiny_pooler: Path, tmp_path: Path
) -> None:
    options = {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}
    write_adapter(tiny_base, tmp_path / "peft", **options)
    spec = factories.TINY.pooler
    parts = Parts(tiny_base, adapter=tmp_path / "peft", pooler=tiny_pooler, pooler_spec=spec)
    assemble_checkpoint(parts, tmp_path / "one")
    values = pairs.values(tiny_base, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "one")}, {}
    learner, tokenizer = open_learner(TrainRecipe.model_validate(values), torch.float32, CPU)
    learner.eval()
    assert len([n for n in learner.trained() if "magnitude" in n]) == 3 * 2
    save_checkpoint(learner, whole_weights(learner), tmp_path / "two")
    one, two = (load_file(tmp_path / name / ADAPTER) for name in ("one", "two"))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    with load_encoder(tmp_path / "two", "torch", device="cpu") as encoder:
        found = encoder.encode(TEXTS, instruction="find it")
    assert np.abs(found - embed(learner, tokenizer)).max() <= 2e-6


@pytest.mark.parametrize("name", ["layers.9.self_attn.q_proj", "mlp.q_proj"])
def test_linears_that_the_decoder_has_not_are_refused(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    adapter = {"target_modules": ["layers.1.self_attn.q_proj", "mlp.down_proj", name]}
    recipe = pairs.recipe(tiny_base, tmp_path, tmp_path / "run", adapter=adapter)
    with pytest.raises(RecipeError, match=f"adapter.target_modules: {name} .* no linear of"):
        open_learner(recipe, torch.float32, CPU)
    adapter["target_modules"].pop()
    recipe = pairs.recipe(tiny_base, tmp_path, tmp_path / "run", adapter=adapter)
    learner, _ = open_learner(recipe, torch.float32, CPU)
    assert len([n for n in learner.trained() if "lora_" in n]) == (1 + 3) * 2


def test_text_rules_and_tokenizer_of_a_checkpoint_outlast_a_second_stage(
    tiny_base: Path, tmp_path: Path
) -> None:
    first, _ = opened(tiny_base, tmp_path)
    save_checkpoint(first, whole_weights(first), tmp_path / "one")
    rules = {
        "instruction_template": "{instruction}: ",
        "max_tokens": 48,
        "pad_id": 0,
        "truncation": "reference",
    }
    description = tmp_path / "one" / "checkpoint.json"
    described = json.loads(description.read_text())
    assert "text" not in described
    description.write_text(json.dumps(described | {"text": rules}))
    trained = Tokenizers.from_file(str(tiny_base / "tokenizer.json"))
    trained.add_tokens(["another text"])
    trained.save(str(tmp_path / "one" / "tokenizer.json"))

    values = pairs.values(tiny_base, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "one")}, {}
    second, tokenizer = shaken(open_learner(TrainRecipe.model_validate(values), torch.float32, CPU))
    save_checkpoint(second, whole_weights(second), tmp_path / "two")
    one, two = (open_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert two.spec.text == one.spec.text == tokenizer.spec
    assert json.loads((tmp_path / "two" / "checkpoint.json").read_text())["text"] == rules
    assert two.tokenizer == tmp_path / "two" / "tokenizer.json"
    assert two.tokenizer.read_bytes() == one.tokenizer.read_bytes()
    assert two.tokenizer.read_bytes() != (tiny_base / "tokenizer.json").read_bytes()
    with load_encoder(tmp_path / "two", "torch", device="cpu") as encoder:
        found = encoder.encode(TEXTS, instruction="find it")
    assert np.abs(found - embed(second, tokenizer)).max() <= 2e-6


def test_peft_itself_reads_the_adapter(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    learner, _ = opened(tiny_base, tmp_path)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    base = AutoModel.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    theirs = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for name, parameter in learner.trained().items():
        if "lora_" in name:
            key = "base_model.model." + name.removeprefix("backbone.decoder.")
            assert torch.equal(theirs[key], parameter)


def test_who_may_read_the_folder_may_read_all_of_it(tiny_base: Path, tmp_path: Path) -> None:
    learner, _ = opened(tiny_base, tmp_path)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1, files


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone does not exist"):
        opened(tmp_path / "gone", tmp_path)


def from_released(base: Path, folder: Path, **model: object) -> TrainRecipe:
    values = pairs.values(base, folder, folder / "run")
    values["model"] = {"base": str(base), **model}
    return TrainRecipe.model_validate(values)


def test_training_goes_on_from_a_released_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = from_released(tiny_checkpoint, tmp_path)
    fresh, tokenizer = open_learner(recipe, torch.float32, CPU)
    fresh.eval()
    with load_encoder(tiny_checkpoint, "torch", device="cpu") as encoder:
        released = encoder.encode(TEXTS, instruction="find it")
    assert np.abs(embed(fresh, tokenizer) - released).max() <= 2e-6
    trained = set(fresh.trained())
    assert len([n for n in trained if "lora_" in n]) == 3 * 7 * 2
    assert len([n for n in trained if n.startswith("pooler.")]) == 14

    learner, _ = shaken((fresh, tokenizer))
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    export = ExportRecipe(precision=Precision.FP32)
    run_export(plan_export(tmp_path / "out", export), tmp_path / "artifact")
    expected = embed(learner, tokenizer)
    assert np.abs(expected - released).max() > 1e-2
    for place, runtime in (("out", "torch"), ("artifact", "onnx")):
        with load_encoder(tmp_path / place, runtime, device="cpu") as encoder:
            found = encoder.encode(TEXTS, instruction="find it")
        assert np.abs(found - expected).max() <= 5e-6


def test_a_second_stage_follows_a_first_on_a_released_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = from_released(tiny_checkpoint, tmp_path)
    first, tokenizer = shaken(open_learner(recipe, torch.float32, CPU))
    save_checkpoint(first, whole_weights(first), tmp_path / "one")
    values = pairs.values(tmp_path, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "one")}, {}
    second, _ = open_learner(TrainRecipe.model_validate(values), torch.float32, CPU)
    second.eval()
    assert np.abs(embed(second, tokenizer) - embed(first, tokenizer)).max() <= 1e-6


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"checkpoint": "RELEASED"}, "is a released model, whose adapter is merged"),
        ({"base": "RELEASED", "num_latents": 4}, "is a released model: num_latents are its own"),
        ({"base": "ASSEMBLED"}, "is a checkpoint"),
    ],
)
def test_a_start_of_the_wrong_kind_is_refused_with_the_right_one(
    tiny_checkpoint: Path, tiny_assembled: Path, tmp_path: Path, model: dict, problem: str
) -> None:
    values = pairs.values(tmp_path, tmp_path, tmp_path / "run")
    places = {"RELEASED": str(tiny_checkpoint), "ASSEMBLED": str(tiny_assembled)}
    values["model"], values["adapter"] = {k: places.get(v, v) for k, v in model.items()}, {}
    with pytest.raises(CheckpointError, match=problem):
        open_learner(TrainRecipe.model_validate(values), torch.float32, CPU)


def test_an_adapter_that_lost_a_tensor_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    learner, _ = opened(tiny_base, tmp_path)
    save_checkpoint(learner, whole_weights(learner), tmp_path / "out")
    path = tmp_path / "out" / ADAPTER
    tensors = load_file(path)
    for part in ("lora_A", "lora_B"):
        del tensors[f"base_model.model.layers.0.self_attn.q_proj.{part}.weight"]
    save_file(tensors, path)
    values = pairs.values(tiny_base, tmp_path, tmp_path / "run")
    values["model"], values["adapter"] = {"checkpoint": str(tmp_path / "out")}, {}
    with pytest.raises(CheckpointError, match="2 tensors do not fit its own config"):
        open_learner(TrainRecipe.model_validate(values), torch.float32, CPU)
    shutil.rmtree(tmp_path / "out")
