"""Tests of nvembed_deploy/commands/assemble.py: parts on a command line."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.spec import PoolerSpec
from tests import factories
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
        f"wrote {out}: mine, 3 layers, hidden 64, 12 latents, 2 heads of 64\n"
        f"next: nvembed-deploy export {out} ARTIFACT\n",
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


@pytest.mark.parametrize("words", [("--heads", "2"), ("--head-width", "64"), SIZES])
def test_a_trained_poolers_sizes_are_those_of_its_file(
    tiny_base: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    sizes = replace(factories.TINY.pooler, feed_width=100)  # not 4 x the hidden size
    pooler = factories.write_pooler(tmp_path / "p", replace(factories.TINY, pooler=sizes))
    pooler = pooler.rename(tmp_path / "p.safetensors")
    assert assemble(tiny_base, tmp_path / "out", "--pooler", pooler, *words) == 0
    assert open_checkpoint(tmp_path / "out").spec.pooler == sizes


def test_eight_heads_of_the_hidden_size_need_no_option(tiny_base: Path, tmp_path: Path) -> None:
    sizes = replace(factories.TINY.pooler, num_heads=8)
    spec = replace(factories.TINY, pooler=sizes)
    pooler = factories.write_pooler(tmp_path / "p.safetensors", spec)
    assert assemble(tiny_base, tmp_path / "out", "--pooler", pooler) == 0
    assert open_checkpoint(tmp_path / "out").spec.pooler == sizes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "does not show how many heads it has.*\n.*give --heads or --head-width"),
        ("--heads 2 --latents 13", "--latents is 13, but POOLER has 12\n.*leave --latents out"),
        ("--heads 2 --feed-width 64", "--feed-width is 64, but POOLER has 256\n.*--feed-width"),
        ("--heads 3", "--heads 3 does not fit POOLER.*\n.*so that their product is 128"),
        (
            "--heads 4 --head-width 64",
            "--heads 4 --head-width 64 does not fit POOLER.*\n.*--heads or --head-width",
        ),
        ("--head-width 129", "--head-width 129 does not fit POOLER.*\n.*product is 128"),
    ],
)
def test_sizes_that_a_pooler_lacks_are_told_by_their_options(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    pooler = factories.write_pooler(tmp_path / "p.safetensors")
    assert assemble(tiny_base, tmp_path / "out", "--pooler", pooler, *words.split()) == 2
    assert re.search(told.replace("POOLER", str(pooler)), capsys.readouterr().err)


def test_a_pooler_of_another_base_is_told_by_both_hidden_sizes(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooler = factories.write_pooler(tmp_path / "p.safetensors", factories.FUSABLE)
    assert assemble(tiny_base, tmp_path / "out", "--pooler", pooler) == 2
    problem = (
        f"error: {pooler} has hidden size 128, the base {tiny_base} has 64\nfix: give the base"
    )
    assert capsys.readouterr().err.startswith(problem)


def test_the_next_command_can_be_pasted_whatever_the_path(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my 'own' checkpoint"
    assert assemble(tiny_base, out, *SIZES) == 0
    _, command = capsys.readouterr().out.splitlines()
    assert shlex.split(command) == ["next:", "nvembed-deploy", "export", str(out), "ARTIFACT"]


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
        (("BASE", "--prompt", "query"), "--prompt 'query' is no NAME=PREFIX"),
        (("BASE", "--name", "a\nb"), "--name 'a\\nb' is not one line of printable text"),
    ],
    ids=["base", "adapter", "pooler", "prompt", "name"],
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
