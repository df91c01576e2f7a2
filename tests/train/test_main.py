"""Tests of nvembed_deploy/train/__main__.py: what a user types, and what comes back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from nvembed_deploy.train.__main__ import main
from nvembed_deploy.train.journal import read_log
from tests.train import pairs


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Path:
    data = pairs.write_pairs(tmp_path / "pairs.jsonl")
    values = pairs.values(tiny_base, data, tmp_path / "run")
    return pairs.write_toml(tmp_path / "recipe.toml", values)


def test_a_run_says_what_it_wrote_and_what_comes_next(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe)]) == 0
    out = capsys.readouterr().out
    checkpoint = tmp_path / "run" / "checkpoint"
    losses = [record.loss for record in read_log(tmp_path / "run")]
    mean = f"loss {sum(losses) / 6:.4f} (mean of the last 6 steps)"
    assert out.startswith(f"wrote {checkpoint}: 6 steps, {mean}, ")
    assert out.endswith(f"next: nvembed-deploy export {checkpoint} ARTIFACT\n")
    assert main([str(recipe)]) == 2
    assert "add --resume, --overwrite, or change run.out" in capsys.readouterr().err


def test_the_next_command_can_be_pasted_whatever_the_path(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimizer.steps=1", "optimizer.warmup_steps=0", f"run.out='{tmp_path}/my run'"]
    assert main([str(recipe), *(word for pair in words for word in ("--set", pair))]) == 0
    said, _, command = capsys.readouterr().out.splitlines()
    checkpoint = str(tmp_path / "my run" / "checkpoint")
    assert shlex.split(command)[1:] == ["nvembed-deploy", "export", checkpoint, "ARTIFACT"]
    assert ": 1 step, loss " in said
    assert "(mean of the last 1 step)" in said


def test_json_is_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6


def test_a_dry_run_counts_and_trains_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "pairs.jsonl"
    bad.write_text(bad.read_text() + "{\n")
    words = [str(recipe), "--dry-run", "--set", 'text.on_bad="skip"']
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "24 examples (retrieval 12, sts 12), 100% of each batch, passed through 1.00" in out
    assert "left out 1: broken JSON" in out
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_dry_run_finds_what_a_run_would_stop_at(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(recipe), "--dry-run", "--set", "loss.in_batch_negatives=false"]
    assert main(words) == 0
    assert "  8 of 24 examples have no negative" in capsys.readouterr().out
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(pairs.pair(1, instruction="word " * 60)) + "\n")
    assert main(words) == 2
    assert "line 1: the instruction's" in capsys.readouterr().err
    data.write_text(json.dumps(pairs.pair(1, negatives=[])) + "\n")
    assert main(words) == 2
    assert "no example has a negative" in capsys.readouterr().err


def test_one_example_is_not_called_several(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.write_pairs(tmp_path / "pairs.jsonl", 1)
    assert main([str(recipe), "--dry-run"]) == 0
    assert ": 1 example (retrieval 1), 100% of each batch" in capsys.readouterr().out


def test_a_run_goes_on_or_is_removed_but_not_both(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(recipe), "--resume", "--overwrite"])
    assert "not allowed with argument --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["gone.toml"], 2, "recipe gone.toml does not exist"),
        (["RECIPE", "--set", "run.seed"], 2, "has no '='"),
        (["RECIPE", "--set", "run.sed=1"], 2, "unknown key run.sed"),
        (["RECIPE", "--set", "optimizer.weight_decay=inf"], 2, "optimizer.weight_decay is inf"),
        (["RECIPE", "--set", "model.base=gone"], 2, "model.base gone: no such file"),
        (["RECIPE", "--set", "optimizer.learning_rate=1e30"], 1, "the loss is nan"),
    ],
    ids=["recipe", "pair", "key", "infinite", "base", "nan"],
)
def test_wrong_input_is_told_with_its_remedy(
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    problem: str,
) -> None:
    assert main([str(recipe) if word == "RECIPE" else word for word in words]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if "step" not in line[:5]]
    *told, fix = error
    assert told[0].startswith("error: ")
    assert problem in "\n".join(told)
    assert fix.startswith("fix: ")


@pytest.mark.parametrize("step", ["build-data", "mine", "synthesize"])
def test_steps_before_training_are_here_too(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([step, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m nvembed_deploy.train {step} ")
