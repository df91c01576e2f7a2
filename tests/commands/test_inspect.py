"""Tests of nvembed_deploy/commands/inspect.py: what an artifact is, and what is wrong with it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import read_manifest


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """Return a copy, in a folder whose name rich would take for markup."""
    return shutil.copytree(tiny_artifact, tmp_path / "[red]tiny[/]")


def change(artifact: Path, **values: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_it_names_model_blocks_sizes_hashes_and_verdicts(artifact: Path, capsys) -> None:
    assert main(["inspect", str(artifact), "--full"]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert err == ""
    assert lines[0] == str(artifact)
    assert "model tiny: 3 layers, hidden 64, 4/2 heads" in lines
    assert "pooler 12 latents, 2 heads, folded" in lines
    assert "block linears precision size each layer" in lines
    assert "layers 0-2 21 f32 361.5 KiB 7 linears, 120.5 KiB" in lines
    assert "embed_tokens 0 f32 80.0 KiB" in lines
    assert "parity not measured" in lines
    assert any(line.startswith("self-check passed (whole graph;") for line in lines)
    for name, record in read_manifest(artifact).files.items():
        assert any(f"{name} " in line and record.sha256[:16] in line for line in lines), name
    assert lines[-1] == "verified: every hash"


def test_the_blocks_sum_to_what_the_manifest_says(artifact: Path, capsys) -> None:
    assert main(["inspect", str(artifact)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("block "))
    linears = [int(re.split(r"  +", line)[1]) for line in lines[start + 1 : lines.index("", start)]]
    assert sum(linears) == sum(read_manifest(artifact).linears.values())


@pytest.mark.parametrize(("verdict", "word"), [(True, "parity passed"), (False, "parity FAILED")])
def test_the_parity_verdict_is_shown(artifact: Path, capsys, verdict: bool, word: str) -> None:
    change(artifact, parity={"passed": verdict})
    assert main(["inspect", str(artifact)]) == 0
    assert word in " ".join(capsys.readouterr().out.split())


def test_names_with_brackets_are_shown_as_they_are(artifact: Path, capsys) -> None:
    spec = json.loads((artifact / "manifest.json").read_text())["spec"]
    change(artifact, spec=spec | {"name": "[/]", "prompts": {"[bold]": "x"}})
    assert main(["inspect", str(artifact)]) == 0
    out = capsys.readouterr().out
    assert "[/]: 3 layers" in out
    assert "[bold]" in out


def test_json_is_the_manifest_and_nothing_else(artifact: Path, capsys) -> None:
    assert main(["inspect", str(artifact), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == json.loads((artifact / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_a_changed_file_is_named(artifact: Path, capsys, name: str) -> None:
    data = bytearray((artifact / name).read_bytes())
    data[-2] ^= 1
    (artifact / name).write_bytes(data)
    assert main(["inspect", str(artifact)]) == 2
    assert f"{name} was changed: got sha256" in capsys.readouterr().err


def test_changed_weights_are_found_by_full_alone(artifact: Path, capsys) -> None:
    weights = artifact / "model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["inspect", str(artifact)]) == 0
    assert "every hash but those of weights and engines" in capsys.readouterr().out
    assert main(["inspect", str(artifact), "--full"]) == 2
    assert "model.onnx_data was changed: got sha256" in capsys.readouterr().err


def test_a_missing_file_is_named(artifact: Path, capsys) -> None:
    (artifact / "tokenizer.json").unlink()
    assert main(["inspect", str(artifact)]) == 2
    assert "tokenizer.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("check", [{}, {"passed": True}, {"passed": True, "mean_cosine": "x"}])
def test_a_self_check_that_cannot_be_read_is_an_error_line(
    artifact: Path, capsys, check: dict[str, object]
) -> None:
    change(artifact, check=check)
    assert main(["inspect", str(artifact)]) == 2
    assert "self-check cannot be read" in capsys.readouterr().err


def test_an_artifact_without_self_check_says_so(artifact: Path, capsys) -> None:
    change(artifact, check=None)
    assert main(["inspect", str(artifact)]) == 0
    assert "did not run" in capsys.readouterr().out


def test_a_checkpoint_is_called_one(
    tiny_checkpoint: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    spaced = tmp_path / "my checkpoint"
    spaced.symlink_to(tiny_assembled)
    for path in (tiny_checkpoint, tiny_assembled, spaced):
        assert main(["inspect", str(path)]) == 2
        err = capsys.readouterr().err
        assert f"error: {path} is a checkpoint, expected an artifact" in err
        assert f"fix: nvembed-deploy export {shlex.quote(str(path))} OUT" in err


def test_any_other_folder_is_no_artifact(tmp_path: Path, capsys) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert main(["inspect", str(path)]) == 2
        assert f"error: {path} is no artifact" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(artifact: Path) -> None:
    command = [sys.executable, "-m", "nvembed_deploy", "inspect", str(artifact)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    _, err = child.communicate()
    assert (child.returncode, err) == (0, b"")
