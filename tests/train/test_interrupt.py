"""Tests of nvembed_deploy/train/interrupt.py: Ctrl-C costs no step, pressed twice it is at once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from nvembed_deploy.train.interrupt import deferred_interrupt
from nvembed_deploy.train.journal import read_log
from nvembed_deploy.train.saved import saved_steps
from tests.train import pairs


def test_the_first_is_noted_and_the_second_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as is_asked:
        assert not is_asked()
        signal.raise_signal(signal.SIGINT)
        assert is_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step" in capsys.readouterr().err


def test_an_interrupted_run_has_saved_its_last_step(tiny_base: Path, tmp_path: Path) -> None:
    data = pairs.write_pairs(tmp_path / "pairs.jsonl")
    many = {"steps": 5000, "learning_rate": 1e-3, "warmup_steps": 1}
    sections = {"optimizer": many, "run": {"save_every": 5000}}
    values = pairs.values(tiny_base, data, tmp_path / "run", **sections)
    recipe = pairs.write_toml(tmp_path / "recipe.toml", values)
    process = subprocess.Popen(
        [*pairs.COMMAND, str(recipe)], env=pairs.ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "run")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    (saved,) = saved_steps(tmp_path / "run")
    assert int(saved.name) == len(read_log(tmp_path / "run"))
    assert f"step {int(saved.name)} is saved: --resume goes on from it" in said
    assert "Traceback" not in said
