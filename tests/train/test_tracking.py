"""Tests of nvembed_deploy/train/tracking.py: what trackers write can be read."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvembed_deploy.errors import InputError, MissingPackageError
from nvembed_deploy.train import loop
from nvembed_deploy.train.journal import read_log
from nvembed_deploy.train.saved import saved_steps
from nvembed_deploy.train.tracking import check_tracker, start_tracker
from tests.train import pairs

ACCUMULATOR = "tensorboard.backend.event_processing.event_accumulator"
INSTALL = "pip install 'nvembed-deploy[train-tracking]'"
HIDDEN = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name in ("tensorboard", "wandb") else find_spec(name, *rest)
)
from nvembed_deploy.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_tensorboard_gets_every_step_once(tiny_base: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip(ACCUMULATOR, reason=INSTALL)
    data, run = pairs.write_pairs(tmp_path / "pairs.jsonl"), {"tracker": "tensorboard", "keep": 9}
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run", run=run)
    loop.train(recipe)
    for folder in saved_steps(tmp_path / "run")[1:]:
        folder.rename(tmp_path / folder.name)
    loop.train(recipe, resume=True)  # from step 2
    events = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(r.step, pytest.approx(r.loss)) for r in read_log(tmp_path / "run")]
    assert len(found) == 6


def test_wandb_writes_a_run_folder_offline(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason=INSTALL)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    data, run = pairs.write_pairs(tmp_path / "pairs.jsonl"), {"tracker": "wandb"}
    loop.train(pairs.recipe(tiny_base, data, tmp_path / "run", run=run))
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    words, deadline = (b"gradient_norm", b"temperature", b"nvembed-deploy"), time.monotonic() + 30
    # A process of its own writes the file, and may end a moment after the run has.
    while not all(word in written.read_bytes() for word in words):
        assert time.monotonic() < deadline, "the run's file does not tell all of the run"
        time.sleep(0.1)


def test_nobody_logged_in_to_wandb_is_told_with_the_way_out(tmp_path: Path) -> None:
    """It is played: wandb asks once a process whether it is offline, and the test above has."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    recipe = pairs.recipe(tmp_path, tmp_path, tmp_path / "run", run={"tracker": "wandb"})
    with pytest.raises(InputError, match="'wandb', which cannot begin: No API key") as caught:
        start_tracker(SimpleNamespace(init_trackers=refuse), recipe, 0)
    assert "WANDB_MODE=offline" in caught.value.fix


def test_a_tracker_that_cannot_begin_costs_nothing_of_what_is_to_be_overwritten(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason=INSTALL)

    def refuse(**_: object) -> None:
        raise wandb.errors.CommError("no server")

    monkeypatch.setattr(wandb, "init", refuse)
    data = pairs.write_pairs(tmp_path / "pairs.jsonl")
    short = {"steps": 1, "warmup_steps": 0}
    loop.train(pairs.recipe(tiny_base, data, tmp_path / "run", optimizer=short))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    other = pairs.recipe(tiny_base, data, tmp_path / "run", run={"tracker": "wandb"})
    with pytest.raises(InputError, match="cannot begin: no server"):
        loop.train(other, overwrite=True)
    found = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert {path for path in before if found.get(path) != before[path]} == set()


def test_a_run_that_is_overwritten_leaves_none_of_its_tracked_steps(
    tiny_base: Path, tmp_path: Path
) -> None:
    pytest.importorskip(ACCUMULATOR, reason=INSTALL)
    data, run = pairs.write_pairs(tmp_path / "pairs.jsonl"), {"tracker": "tensorboard"}
    short = {"steps": 1, "warmup_steps": 0}
    recipe = pairs.recipe(tiny_base, data, tmp_path / "run", run=run, optimizer=short)
    loop.train(recipe)
    (earlier,) = (tmp_path / "run" / "tensorboard").iterdir()
    loop.train(recipe, overwrite=True)
    (written,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert written.name != earlier.name
    assert written.stat().st_size > 0


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_told_before_any_step(
    tiny_base: Path, tmp_path: Path, tracker: str
) -> None:
    data = pairs.write_pairs(tmp_path / "pairs.jsonl")
    values = pairs.values(tiny_base, data, tmp_path / "run", run={"tracker": tracker})
    path = pairs.write_toml(tmp_path / "recipe.toml", values)
    command = [sys.executable, "-c", HIDDEN, str(path)]
    done = subprocess.run(
        command, env=pairs.ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert f"error: run.tracker is '{tracker}', which is not installed" in done.stderr
    assert INSTALL in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_tracker_needs_no_package() -> None:
    check_tracker("none")
    with pytest.raises(MissingPackageError, match="no-such-tracker"):
        check_tracker("no-such-tracker")
