"""Tests of nvembed_deploy/train/run_folder.py: no run is lost, and nothing that is not a run's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.errors import InputError, RecipeError
from nvembed_deploy.train import loop
from nvembed_deploy.train.journal import read_log
from nvembed_deploy.train.recipe import TrainRecipe
from nvembed_deploy.train.run_folder import check_claim, claim, held, written
from nvembed_deploy.train.saved import saved_steps
from tests.full_disk import files_up_to
from tests.train import pairs, runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pairs.write_pairs(tmp_path / "pairs.jsonl")


def test_a_run_is_never_overwritten_unasked(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run")
    loop.train(recipe)
    with pytest.raises(RecipeError, match="holds a run already"):
        loop.train(recipe)
    other = pairs.recipe(tiny_base, data, tmp_path / "run", loss={"temperature": 0.2})
    with pytest.raises(RecipeError, match=r"another recipe: loss\.temperature differ"):
        loop.train(other, resume=True)
    values = pairs.values(tiny_base, data, tmp_path / "run")
    values["data"].append({"path": str(data), "weight": 2.0})
    with pytest.raises(RecipeError, match=r"another recipe: data differ"):
        loop.train(TrainRecipe.model_validate(values), resume=True)
    loop.train(other, overwrite=True)
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["loss"]["temperature"] == 0.2


def test_a_full_disk_does_not_cost_the_recipe(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run")
    loop.train(recipe)
    with files_up_to(10), pytest.raises(OSError):
        claim(recipe, [])
    check_claim(recipe, resume=True, overwrite=False)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_run_whose_recipe_is_damaged_is_not_gone_on_with(
    tiny_base: Path, tmp_path: Path, text: str
) -> None:
    recipe = pairs.recipe(tiny_base, tmp_path, tmp_path / "run")
    (recipe.run.out / "steps").mkdir(parents=True)
    (recipe.run.out / "recipe.json").write_text(text)
    with pytest.raises(RecipeError, match=r"run/recipe\.json"):
        check_claim(recipe, resume=True, overwrite=False)


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_steps_without_a_recipe_are_not_taken_for_the_runs(
    tiny_base: Path, data: Path, tmp_path: Path, option: str
) -> None:
    """They would be the newest steps, of which the checkpoint is made."""
    loop.train(pairs.recipe(tiny_base, data, tmp_path / "run"))
    (tmp_path / "run" / "recipe.json").unlink()
    short = pairs.recipe(tiny_base, data, tmp_path / "run", optimizer={"steps": 2})
    with pytest.raises(RecipeError, match=r"holds steps or a log but no recipe\.json"):
        loop.train(short, **{option: True})
    assert len(saved_steps(tmp_path / "run")) == 2


def test_all_missing_paths_are_named_before_anything_is_written(tmp_path: Path) -> None:
    recipe = pairs.recipe(tmp_path / "no-base", tmp_path / "no-data", tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        loop.train(recipe)
    assert "model.base" in caught.value.problem
    assert "data.0.path" in caught.value.problem
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_overwritten_stays_until_the_next_can_begin(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    loop.train(pairs.recipe(tiny_base, data, out))
    (out / "mine.txt").touch()
    weights, table = runs.weights(out), next((out / "data").iterdir())
    wrong = pairs.recipe(tiny_base, data, out, adapter={"target_modules": ["mlp.q_proj"]})
    with pytest.raises(RecipeError):
        loop.train(wrong, overwrite=True)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(InputError):
        loop.train(pairs.recipe(tiny_base, empty, out), overwrite=True)
    assert all(np.array_equal(weights[n], w) for n, w in runs.weights(out).items())
    assert len(read_log(out)) == 6

    other = pairs.write_pairs(tmp_path / "other.jsonl", 8)
    short = {"steps": 1, "warmup_steps": 0}
    loop.train(pairs.recipe(tiny_base, other, out, optimizer=short), overwrite=True)
    assert [s.name for s in saved_steps(out)] == ["000001"]
    assert len(read_log(out)) == 1
    assert (out / "mine.txt").exists()
    assert not table.exists()


def test_links_of_the_next_runs_tracker_stay(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Weights & Biases has one to its newest run, which `wandb sync` sends."""
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run")
    tracked, link = tmp_path / "run" / "wandb", tmp_path / "run" / "wandb" / "latest-run"
    (tmp_path / "run" / "data").mkdir(parents=True)
    claim(recipe, [])
    (tracked / "first").mkdir(parents=True)
    link.symlink_to("first")
    earlier = written(tmp_path / "run")
    (tracked / "second").mkdir()
    link.unlink()
    link.symlink_to("second")
    claim(recipe, [], earlier)
    assert {path.name for path in tracked.iterdir()} == {"second", "latest-run"}


def test_what_lies_behind_a_tracker_folders_link_stays(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """One folder for all runs' curves, say."""
    recipe, shared = pairs.recipe(tiny_base, data, tmp_path / "run"), tmp_path / "shared"
    (tmp_path / "run" / "data").mkdir(parents=True)
    claim(recipe, [])
    (shared / "other").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard").symlink_to(shared)
    claim(recipe, [], written(tmp_path / "run"))
    assert (shared / "other").is_dir()


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_file_that_somebody_put_into_the_checkpoint_is_named_before_the_first_step(
    tiny_base: Path, data: Path, tmp_path: Path, option: str
) -> None:
    out = tmp_path / "run"
    loop.train(pairs.recipe(tiny_base, data, out))
    (out / "checkpoint" / "README.md").write_text("mine")
    with pytest.raises(RecipeError, match=r"checkpoint holds README\.md, which training did not"):
        loop.train(pairs.recipe(tiny_base, data, out), **{option: True})
    assert (out / "checkpoint" / "README.md").read_text() == "mine"
    assert len(read_log(out)) == 6


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.checkpoint", "run/checkpoint"),
        ("model.checkpoint", "run/steps/000006/checkpoint"),
        ("model.base", "run"),
        ("data.0.path", "run/log.jsonl"),
        ("data.0.path", "run/data/TABLE/table"),
        ("data.0.path", ""),
    ],
)
def test_a_run_does_not_write_over_what_it_reads(
    tiny_base: Path, data: Path, tmp_path: Path, key: str, place: str
) -> None:
    loop.train(pairs.recipe(tiny_base, data, tmp_path / "run"))
    values = pairs.values(tiny_base, data, tmp_path / "run")
    place = place.replace("TABLE", next((tmp_path / "run" / "data").iterdir()).name)
    if key == "data.0.path":
        values["data"] = [{"path": str(tmp_path / place)}]
    else:
        values["model"] = {key.removeprefix("model."): str(tmp_path / place)}
        values["adapter"] = {}
    with pytest.raises(RecipeError, match=f"{key} {tmp_path / place}: the run itself"):
        loop.train(TrainRecipe.model_validate(values), overwrite=True)
    assert (tmp_path / "run" / "checkpoint" / "checkpoint.json").exists()


def test_two_runs_do_not_write_one_folder(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run")
    with held(recipe.run.out), pytest.raises(RecipeError, match="another run is writing"):
        loop.train(recipe)
    loop.train(recipe)
    with held(recipe.run.out), pytest.raises(RecipeError, match="another run is writing"):
        loop.train(recipe, overwrite=True)
