"""Tests of nvembed_deploy/commands/assemble.py: parts on a command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.spec import PoolerSpec
from tests.model.test_adapter import write_adapter

SIZES = ("--latents", "12", "--heads", "2")


def assemble(*words: object) -> int:
    return main(["assemble", *map(str, words)])


def test_parts_become_a_checkpoint_and_the_next_step_is_told(
    tiny_base: Path, tiny_pooler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tiny_base, tmp_path / "lora")
    capsys.readouterr()  # peft's own progress
    out = tmp_path / "out"
    parts = ("--adapter", tmp_path / "lora", "--pooler", tiny_pooler)
    assert assemble(tiny_base, out, *parts, *SIZES, "--name", "mine") == 0
    assert capsys.readouterr() == (
        f"wrote {out}: mine, 3 layers, hidden 64\nnext: nvembed-deploy export {out} ARTIFACT\n",
        "",
    )
    checkpoint = open_checkpoint(out)
    assert checkpoint.adapter == (out / "adapter").resolve()
    assert checkpoint.spec.pooler == PoolerSpec(
        num_latents=12, num_heads=2, head_width=64, feed_width=256
    )


def test_a_fresh_pooler_is_called_one(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assemble(tiny_base, tmp_path / "out", *SIZES) == 0
    assert "with a fresh pooler (nearly the plain mean; train it)" in capsys.readouterr().out


def test_prompts_keep_their_line_breaks_and_their_equals_signs(
    tiny_base: Path, tmp_path: Path
) -> None:
    prompts = ("--prompt", "query=Instruct: a=b\\nQuery: ", "--prompt", "document=")
    assert assemble(tiny_base, tmp_path / "out", *SIZES, *prompts) == 0
    description = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert description["prompts"] == {"query": "Instruct: a=b\nQuery: ", "document": ""}


def test_a_seed_makes_another_fresh_pooler(tiny_base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert assemble(tiny_base, tmp_path / name, *SIZES, "--seed", seed) == 0
    a, b, c = ((tmp_path / n / "pooler.safetensors").read_bytes() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("nowhere",), "base nowhere is neither a folder nor a .gguf file"),
        (("BASE", "--adapter", "nowhere"), "nowhere does not exist"),
        (("BASE", "--pooler", "nowhere"), "nowhere does not exist"),
        (("BASE", "--prompt", "query"), "--prompt 'query' has no '='"),
    ],
    ids=["base", "adapter", "pooler", "prompt"],
)
def test_wrong_input_is_two_lines_and_leaves_nothing(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    problem: str,
) -> None:
    base, *rest = (str(tiny_base) if word == "BASE" else word for word in words)
    assert assemble(base, tmp_path / "out", *SIZES, *rest) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert err.startswith(f"error: {problem}")
    assert "\nfix: " in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_asked(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert assemble(tiny_base, out, *SIZES, "--name", "old") == 0
    assert assemble(tiny_base, out, *SIZES, "--name", "new") == 2
    assert f"error: {out} exists already\nfix: " in capsys.readouterr().err
    assert open_checkpoint(out).spec.name == "old"
    assert assemble(tiny_base, out, *SIZES, "--name", "new", "--overwrite") == 0
    assert open_checkpoint(out).spec.name == "new"


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_sizes_count_things(tiny_base: Path, tmp_path: Path, capsys, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        assemble(tiny_base, tmp_path / "out", "--latents", value)
    assert caught.value.code == 2
    assert f"argument --latents: got '{value}', expected a whole number" in capsys.readouterr().err


def test_no_heavy_package_is_needed(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    assert assemble(tiny_base, tmp_path / "out", *SIZES) == 0
