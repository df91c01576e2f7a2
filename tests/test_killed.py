"""Commands that a signal meets anywhere: the folder they make is whole, or it is not there."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvembed_deploy.artifact import open_artifact
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.staging import _exchange
from tests.killed import Outcome, Runner, spread

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX")

KILLED = -signal.SIGKILL
END = 14
"""Steps at the end of a run that overwrites: the change of names, the removal of the old folder."""
BOTH = pytest.mark.parametrize("verb", ["export", "assemble"])


@dataclass(frozen=True)
class Command:
    """A command that makes the folder `out`, in editions that can be told apart."""

    runner: Runner
    words: tuple[object, ...]
    option: str
    out: Path

    def run(self, edition: str, **signals: int) -> Outcome:
        """Make the folder, replacing what is there."""
        return self.runner.run(*self.words, self.option, edition, "--overwrite", **signals)

    def finish(self, edition: str) -> int:
        """Make the folder: it is there and nothing else is. Return the steps that took."""
        done = self.run(edition)
        assert (done.code, done.err) == (0, "")
        assert (self.edition(), self.beside()) == (edition, [])
        return done.steps

    def edition(self) -> str | None:
        """Open the folder and check all of it; return its edition, or None if there is none."""
        return open_edition(self.out) if self.out.exists() else None

    def beside(self) -> list[Path]:
        """Return what lies beside the folder."""
        return [path for path in self.out.parent.iterdir() if path != self.out]


def open_edition(path: Path) -> str:
    if (path / "manifest.json").exists():
        return open_artifact(path, "full").manifest.precision.value
    weights = open_weights(open_checkpoint(path))
    for name in weights.shapes:
        weights.read(name)
    return weights.spec.name


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture
def command(
    runner: Runner, verb: str, tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path
) -> Command:
    out = tmp_path / "out"
    if verb == "export":
        return Command(runner, ("export", tiny_checkpoint, out), "--precision", out)
    sizes = ("--latents", 12, "--heads", 2, "--copy-base")
    return Command(runner, ("assemble", tiny_base, out, *sizes), "--name", out)


def can_exchange(folder: Path) -> bool:
    """Say whether this disk gives two folders each other's name at one moment."""
    pair = folder / "one", folder / "other"
    for path in pair:
        path.mkdir()
    can = _exchange(*pair)
    for path in pair:
        path.rmdir()
    return can


def with_the_end(count: int, most: int) -> list[int]:
    """Return steps from first to last, all of the last few (where names change) among them."""
    return sorted({*spread(count, most), *range(max(count - END, 1), count + 1)})


@BOTH
def test_a_killed_run_leaves_a_whole_folder_or_none(command: Command) -> None:
    steps = spread(command.finish("fp16"), 25)
    found = []
    for step in steps:
        shutil.rmtree(command.out, ignore_errors=True)
        assert command.run("fp16", signum=signal.SIGKILL, at=step).code == KILLED
        found.append(command.edition())
        if step in steps[1::12]:
            command.finish("fp16")
    command.finish("fp16")
    assert (found[0], found[-1]) == (None, "fp16")
    assert found == sorted(found, key=bool), "a finished folder appeared, then vanished"


@BOTH
def test_a_killed_run_that_overwrites_leaves_the_old_folder_or_the_new_one(
    command: Command, tmp_path: Path
) -> None:
    if not can_exchange(tmp_path):
        pytest.skip(f"the disk of {tmp_path} cannot exchange two folders at once")
    command.finish("fp32")
    steps = with_the_end(command.finish("fp16"), 6)
    command.finish("fp32")
    found = []
    for step in steps:
        assert command.run("fp16", signum=signal.SIGKILL, at=step).code == KILLED
        found.append(command.edition())
    assert (found[0], found[-1]) == ("fp32", "fp16")
    assert None not in found
    command.finish("fp16")


@pytest.mark.parametrize("verb", ["assemble"])
def test_without_an_exchange_the_next_run_puts_the_old_folder_back(command: Command) -> None:
    command.finish("fp32")
    steps = with_the_end(command.run("fp16", exchange=False).steps, 6)
    command.finish("fp32")
    found = []
    for step in steps:
        assert command.run("fp16", signum=signal.SIGKILL, at=step, exchange=False).code == KILLED
        found.append(command.edition())
        if found[-1] is None:
            aside = [open_edition(path) for path in command.beside() if ".old-" in path.name]
            assert aside == ["fp32"]
            refused = command.runner.run(*command.words)
            assert (refused.code, command.edition()) == (2, "fp32")
    assert None in found, "no step between the two renames was met"
    assert found[-1] == "fp16"
    command.finish("fp16")


@pytest.mark.parametrize(
    ("verb", "exchange"), [("export", True), ("assemble", True), ("assemble", False)]
)
def test_an_interrupted_run_leaves_nothing_behind(
    command: Command, verb: str, exchange: bool
) -> None:
    command.finish("fp32")
    count = command.run("fp16", exchange=exchange).steps
    command.finish("fp32")
    steps = with_the_end(count, 4) if verb == "assemble" else spread(count, 9)
    for step in steps:
        done = command.run("fp16", signum=signal.SIGINT, at=step, exchange=exchange)
        assert (done.code, command.beside()) == (130, [])
        assert done.err.strip() == "interrupted; nothing half-written was left"
        assert command.edition() in {"fp32", "fp16"}


@BOTH
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_first_run_leaves_no_folder_at_all(
    command: Command, signum: signal.Signals
) -> None:
    count = command.finish("fp16")
    shutil.rmtree(command.out)
    for step in spread(count // 2, 5):
        done = command.run("fp16", signum=signum, at=step)
        assert (done.code, list(command.out.parent.iterdir())) == (128 + signum, [])


def test_a_killed_export_goes_on_from_its_cache(
    runner: Runner, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("export", tiny_checkpoint, tmp_path / "out", "--precision", "fp8", "--overwrite")
    few = tmp_path / "recipe.toml"
    few.write_text("calibration_texts = 4\ncalibration_tokens = 16\n")
    assert runner.run(*words, "--recipe", few).code == 0
    whole = (tmp_path / "out" / "model.onnx_data").read_bytes()
    cached = (*words, "--recipe", few, "--cache", tmp_path / "cache")
    steps = runner.run(*cached).steps
    facts = []
    for step in spread(steps, 8):
        assert runner.run(*cached, signum=signal.SIGKILL, at=step).code in {KILLED, 0}
        facts.append(len(list(tmp_path.glob("cache/*/block-*.json"))))
    done = runner.run(*cached)
    assert done.code == 0
    assert max(facts) > 1, "no run went on from another's blocks"
    assert (tmp_path / "out" / "model.onnx_data").read_bytes() == whole
    assert list((tmp_path / "cache").iterdir()) == []
