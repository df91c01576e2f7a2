"""Tests of nvembed_deploy/train/recipe.py: what a recipe may say, and all that is wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.spec import BackboneSpec, PoolerSpec
from nvembed_deploy.train.recipe import load_recipe
from tests.train import pairs

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "train").glob("*.toml"))


@pytest.fixture
def values(tmp_path: Path) -> dict:
    return pairs.values(tmp_path / "base", tmp_path / "data.jsonl", tmp_path / "out")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_right_and_opens_with_its_command(path: Path) -> None:
    load_recipe(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"-m nvembed_deploy.train train/{path.name}")


def test_the_papers_settings_are_the_papers() -> None:
    one = load_recipe(ROOT / "train" / "nv-embed-v2-stage1.toml")
    two = load_recipe(ROOT / "train" / "nv-embed-v2-stage2.toml")
    for recipe, steps, rate in ((one, 20_000, 2e-5), (two, 18_000, 1.5e-5)):
        section = recipe.optimizer
        assert (section.steps, section.learning_rate, section.warmup_steps) == (steps, rate, 500)
        assert (section.weight_decay, recipe.batch.queries) == (0.03, 128)
        assert (recipe.loss.hard_negatives, recipe.text.max_tokens) == (7, 512)
        assert recipe.adapter.dropout == 0.1
    assert (one.adapter.rank, one.adapter.alpha) == (16, 32)
    assert one.model.pooler_spec(BackboneSpec()) == PoolerSpec()
    assert (one.loss.in_batch_negatives, two.loss.in_batch_negatives) == (True, False)


def test_overrides_change_single_values(tmp_path: Path, values: dict) -> None:
    path = pairs.write_toml(tmp_path / "r.toml", values)
    changed = {"run.seed": "7", "model.pooling": "eos", "loss.temperature": "0.1"}
    recipe = load_recipe(path, {**changed, "adapter.target_modules": '["q_proj"]'})
    assert (recipe.run.seed, recipe.model.pooling, recipe.loss.temperature) == (7, "eos", 0.1)
    assert recipe.adapter.target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("section", "change", "problem"),
    [
        ("model", {"poolling": "mean"}, "unknown key model.poolling"),
        ("model", {"name": "a\nb"}, r"model.name: 'a\nb' is not one line of printable text"),
        ("model", {"pooling": "max"}, "model.pooling is 'max'"),
        ("model", {"checkpoint": "c"}, "either base (a decoder) or checkpoint"),
        ("model", {"base": None, "checkpoint": "c"}, "a checkpoint's shape is its own"),
        ("adapter", {"rank": 0}, "adapter.rank is 0"),
        ("adapter", {"dropout": 1.0}, "adapter.dropout is 1.0"),
        ("adapter", {"target_modules": ["q_proj", "v_prj"]}, "target_modules.1: 'v_prj' is no"),
        ("adapter", {"target_modules": []}, "adapter.target_modules is []"),
        ("text", {"instruct_passages": ["STS"]}, "text.instruct_passages.0 is 'STS'"),
        ("loss", {"temperature": 0}, "loss.temperature is 0"),
        ("loss", {"hard_negatives": True}, "loss.hard_negatives is True"),
        ("loss", {"in_batch_negatives": False, "hard_negatives": 0}, "no negatives"),
        ("optimizer", {"warmup_steps": 6}, "warmup_steps 6 leaves none of 6 steps"),
        ("optimizer", {"betas": [0.9, 1.0]}, "optimizer.betas.1 is 1.0"),
        ("optimizer", {"steps": None}, "optimizer.steps is None"),
        ("run", {"precision": "fp16"}, "run.precision is 'fp16'"),
        ("run", {"seed": 2**32}, "run.seed is 4294967296"),
    ],
)
def test_a_wrong_value_is_named(
    tmp_path: Path, values: dict, section: str, change: dict, problem: str
) -> None:
    import json

    merged = {**values[section], **change}
    clean = {k: v for k, v in merged.items() if v is not None}
    values[section] = clean
    path = pairs.write_toml(tmp_path / "r.toml", values)
    if section == "optimizer" and change == {"steps": None}:
        problem = "optimizer.steps is missing"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert problem in caught.value.problem, json.dumps(clean)


def test_a_batch_of_one_query_needs_negatives_of_its_own(tmp_path: Path, values: dict) -> None:
    values["batch"]["queries"] = 1
    assert load_recipe(pairs.write_toml(tmp_path / "r.toml", values)).batch.queries == 1
    values["loss"]["hard_negatives"] = 0
    with pytest.raises(RecipeError, match=r"batch\.queries is 1 and loss\.hard_negatives is 0"):
        load_recipe(pairs.write_toml(tmp_path / "r.toml", values))


def test_tasks_that_are_taken_are_tasks_there_are(tmp_path: Path, values: dict) -> None:
    values["data"][0]["task_types"] = ["sts", "retreival"]
    with pytest.raises(RecipeError, match=r"data\.0\.task_types\.1 is 'retreival'"):
        load_recipe(pairs.write_toml(tmp_path / "r.toml", values))


def test_all_mistakes_are_told_at_once(tmp_path: Path, values: dict) -> None:
    values["loss"]["temprature"] = 1
    values["run"]["seed"] = -1
    values["data"] = []
    values["extra"] = {}
    with pytest.raises(RecipeError) as caught:
        load_recipe(pairs.write_toml(tmp_path / "r.toml", values))
    for word in ("unknown key loss.temprature", "run.seed is -1", "data", "unknown key extra"):
        assert word in caught.value.problem


def test_a_checkpoints_adapter_is_its_own(tmp_path: Path, values: dict) -> None:
    values["model"] = {"checkpoint": "stage1"}
    with pytest.raises(RecipeError, match="only dropout may change"):
        load_recipe(pairs.write_toml(tmp_path / "r.toml", values))
    values["adapter"] = {"dropout": 0.0}
    assert load_recipe(pairs.write_toml(tmp_path / "r.toml", values)).model.base is None


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "does not exist"), ("[model", "is not TOML")]
)
def test_a_file_that_is_no_recipe_is_refused(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=problem):
        load_recipe(path)


def test_an_override_without_section_is_refused(tmp_path: Path, values: dict) -> None:
    with pytest.raises(RecipeError, match="--set seed"):
        load_recipe(pairs.write_toml(tmp_path / "r.toml", values), {"seed": "1"})
