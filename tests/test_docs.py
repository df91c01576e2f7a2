"""Tests that the documentation still tells the truth: links, commands, names, recipes.

Each check is a function from text to a list of what is wrong; each is tried on a planted fault.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nvembed_deploy.__main__ import build_parser
from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("examples", "export", "runtimes")),
]
RECIPES = sorted((ROOT / "export").glob("*.toml"))
SOURCES = sorted((ROOT / "nvembed_deploy").rglob("*.py"))
FOREIGN = {"modeling_nvembed.py"}
"""Files that the pages name and other people own."""

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
INDENTED = re.compile(r"^(?: {4}.*\n)+", re.M)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
COMMAND = re.compile(r"\b(?:nvembed-deploy(?=\s|$)|python -m nvembed_deploy\b)")
MODULE = re.compile(r"python -m (\w+(?:\.\w+)*)")
TARGET = re.compile(r"\bmake ([a-z]\w*)\b(?!=)")
EXTRAS = re.compile(r"(?:nvembed-deploy|(?<=['\" ])\.)\[([a-z0-9,-]+)\]")
FILE = re.compile(r"^[\w./*-]+\.(?:py|toml|md|svg|txt)$")


class Code(NamedTuple):
    """A piece of code in a page: a block with its language, or a span within a line."""

    text: str
    language: str = ""
    is_block: bool = False


def code_of(page: str) -> Iterator[Code]:
    """Yield fenced blocks, indented blocks and spans."""
    for language, text in FENCE.findall(page):
        yield Code(text, language, is_block=True)
    prose = FENCE.sub("", page)
    for text in INDENTED.findall(prose):
        yield Code(text, is_block=True)
    yield from (Code(" ".join(text.split())) for text in INLINE.findall(INDENTED.sub("", prose)))


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    titles = (re.sub(r"[^\w -]", "", title.lower()) for title in HEADING.findall(page))
    return {title.strip().replace(" ", "-") for title in titles}


def dead_links(page: str, path: Path) -> list[str]:
    """Return relative links whose file, or whose heading in it, is not there."""
    dead = []
    for link in LINK.findall(FENCE.sub("", page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or not target.is_relative_to(ROOT):
            dead.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(page if target == path else target.read_text()):
            dead.append(f"{link}: no such heading")
    return dead


def commands_of(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of ours in a shell script, `python -m` forms included."""
    for line in filter(COMMAND.search, script.replace("\\\n", " ").splitlines()):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in (*lexer, ";"):
            if set(word) <= set("|;&"):
                if COMMAND.match(" ".join(words)):
                    yield words[1:] if words[0] == "nvembed-deploy" else _without_module(words)
                words = []
            else:
                words.append(word)


def _without_module(words: list[str]) -> list[str]:
    """`python -m nvembed_deploy.export A B` is `export A B`."""
    _, _, subcommand = words[2].partition(".")
    return [subcommand, *words[3:]] if subcommand else words[3:]


def wrong_commands(script: str) -> list[str]:
    """Return commands that the real parser refuses, or that name a recipe which is not there."""
    wrong = []
    for words in commands_of(script):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                args = build_parser().parse_args(words)
        except SystemExit as stop:
            if stop.code != 0:
                wrong.append(f"{shlex.join(words)}: {said.getvalue().splitlines()[-1]}")
            continue
        recipe = getattr(args, "recipe", None)
        if recipe is not None and not (ROOT / recipe).is_file():
            wrong.append(f"{shlex.join(words)}: no recipe {recipe}")
    return wrong


def wrong_mentions(span: str) -> list[str]:
    """Return what is unknown of a command mentioned in prose: its subcommand, its options."""
    wrong = []
    for name, *words in filter(None, commands_of(span)):
        parser = subparsers().get(name)
        if parser is None:
            wrong.append(f"no subcommand {name}")
            continue
        known = {option for action in parser._actions for option in action.option_strings}
        wrong += [f"{name} has no {w}" for w in words if w.startswith("--") and w not in known]
    return wrong


def subparsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands by name."""
    (action,) = (a for a in build_parser()._actions if isinstance(a.choices, dict))
    return action.choices


def unknown_modules(text: str) -> list[str]:
    """Return modules of `python -m MODULE` that cannot be found."""

    def is_there(name: str) -> bool:
        parents = name.split(".")[:-1]
        return (not parents or is_there(".".join(parents))) and bool(importlib.util.find_spec(name))

    return [name for name in MODULE.findall(text) if not is_there(name)]


def unknown_targets(text: str) -> list[str]:
    """Return targets of `make TARGET` that the Makefile lacks."""
    known = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), re.M))
    return [target for target in TARGET.findall(text) if target not in known]


def unknown_extras(text: str) -> list[str]:
    """Return extras that pyproject.toml lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = (extra for group in EXTRAS.findall(text) for extra in group.split(","))
    return [extra for extra in named if extra not in project["optional-dependencies"]]


def unknown_files(span: str) -> list[str]:
    """Return a span that names a source file, if no such file is in the repository."""
    if not FILE.match(span) or span in FOREIGN:
        return []
    places = ("", "nvembed_deploy/", "nvembed_deploy/**/", "tests/")
    return [] if any(any(ROOT.glob(place + span)) for place in places) else [span]


def wrong_python(source: str) -> list[str]:
    """Return a syntax error, or names imported from nvembed_deploy that do not exist."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [str(error)]
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nvembed_deploy"):
            if unknown_modules(f"python -m {node.module}"):
                wrong.append(f"no module {node.module}")
                continue
            module = importlib.import_module(str(node.module))
            names = (alias.name for alias in node.names)
            wrong += [f"{node.module} has no {n}" for n in names if not hasattr(module, n)]
    return wrong


def wrong_recipe(path: Path) -> list[str]:
    """Return what `load_recipe` finds wrong."""
    try:
        load_recipe(path)
    except RecipeError as error:
        return [error.problem]
    return []


def faults(page: str, path: Path) -> list[str]:
    """Return everything that is wrong with a page."""
    wrong = dead_links(page, path)
    for code in code_of(page):
        wrong += unknown_targets(code.text) + unknown_extras(code.text)
        wrong += unknown_modules(code.text)
        if not code.is_block:
            wrong += wrong_mentions(code.text) if COMMAND.match(code.text) else []
            wrong += unknown_files(code.text)
        elif code.language == "python":
            wrong += wrong_python(code.text)
        elif code.language in ("sh", ""):
            wrong += wrong_commands(code.text)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads(path: Path) -> None:
    assert wrong_recipe(path) == []


@pytest.mark.parametrize("name", [None, *subparsers()])
def test_the_examples_of_a_help_text_parse(name: str | None) -> None:
    parser = build_parser() if name is None else subparsers()[name]
    assert wrong_commands(parser.epilog or "") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_extras_an_error_names_exist(path: Path) -> None:
    assert unknown_extras(path.read_text(encoding="utf-8")) == []


def test_the_python_of_the_readme_runs(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "nv-embed-fp16").symlink_to(tiny_artifact)
    monkeypatch.chdir(tmp_path)
    for code in code_of((ROOT / "README.md").read_text(encoding="utf-8")):
        if code.language == "python":
            exec(compile(code.text, "README.md", "exec"), {})
    assert re.fullmatch(r"\[\[-?[01]\.\d+\]\]\n", capsys.readouterr().out)


def test_the_checkpoint_description_of_the_page_opens(
    tiny_base: Path, tiny_pooler: Path, tmp_path: Path
) -> None:
    blocks = code_of((ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"))
    (text,) = (code.text for code in blocks if code.language == "json")
    folder, description = tmp_path / "checkpoint", json.loads(text)
    (folder / description["adapter"]).mkdir(parents=True)
    shutil.copytree(tiny_base, folder / description["base"])
    shutil.copyfile(tiny_pooler, folder / description["pooler"])
    (folder / "checkpoint.json").write_text(text)
    spec = open_checkpoint(folder).spec
    assert asdict(spec).items() >= {k: description[k] for k in ("name", "prompts")}.items()
    assert spec.text.max_tokens == description["text"]["max_tokens"]
    assert asdict(spec.pooler).items() >= description["pooler_spec"].items()


def missing_speeds(page: str, results: dict[str, Any]) -> list[str]:
    """Return the tokens/s of a run of bench, of its curves where it has some, that a page lacks."""
    curves = [
        v for k, v in (results["scaling"] or {}).items() if k in {"batch", "length", "corpus"}
    ]
    points = [point for curve in curves for side in curve.values() for point in side]
    speeds = [point["tokens"] / point["seconds"] for point in points]
    if not curves:  # of the real mix a larger run is shown
        mixes = [mix for mix in results["mixes"] if (mix["name"], mix["texts"]) != ("real", 63)]
        speeds = [side["tokens_per_second"] for mix in mixes for side in mix["sides"].values()]
    assert speeds
    said = set(re.findall(r"[\d,]*\d", page))
    return [text for text in (f"{speed:,.0f}" for speed in speeds) if text not in said]


def test_the_speeds_of_the_page_are_those_of_the_runs_it_names() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    names = re.findall(r"benchmarks/results/(?:cpu|scaling)-[\w-]+\.json", page)
    runs = [json.loads((ROOT / name).read_text(encoding="utf-8")) for name in names]
    assert [missing_speeds(page, run) for run in runs] == [[]] * 8
    assert missing_speeds(page.replace("4,386", "4,387"), runs[0]) == ["4,386"]


def test_the_checks_see_the_commands_of_the_pages() -> None:
    blocks = [code for path in PAGES for code in code_of(path.read_text()) if code.is_block]
    seen = {words[0] for code in blocks for words in commands_of(code.text)}
    assert seen >= set(subparsers())
    assert any(unknown_targets(code.text.replace("make ", "make un")) for code in blocks)
    assert any(EXTRAS.search(code.text) for code in blocks)
    assert any(code.language == "python" for code in blocks)


FAULTS: list[tuple[Callable[[str], list[str]], str, str, str]] = [
    (wrong_commands, "nvembed-deploy export ./a ./b --precision fp16", "fp16", "fp13"),
    (wrong_commands, "echo hi | nvembed-deploy encode ./a  # note", "encode", "enc"),
    (wrong_commands, "nvembed-deploy export a b --recipe export/fp16.toml", "fp16", "fp13"),
    (wrong_commands, "python -m nvembed_deploy.export a b \\\n --opset 20", "20", "19"),
    (wrong_commands, "make demo && nvembed-deploy inspect a --full", "--full", "--fool"),
    (wrong_mentions, "nvembed-deploy export --dry-run", "dry", "wet"),
    (wrong_mentions, "nvembed-deploy inspect", "inspect", "dissect"),
    (unknown_modules, "python -m nvembed_deploy.export", "export", "import"),
    (unknown_modules, "python -m demo.demo", "demo.", "nowhere."),
    (unknown_targets, "make test    # about a minute", "test", "tests"),
    (unknown_extras, "pip install '.[export,onnx]'", "onnx", "onyx"),
    (unknown_extras, "pip install 'nvembed-deploy[onnx-gpu]'", "gpu", "tpu"),
    (unknown_files, "model/fold.py", "fold", "unfold"),
    (unknown_files, "gguf*.py", "gguf", "ggml"),
    (wrong_python, "from nvembed_deploy import load_encoder", "load_encoder", "decoder"),
    (wrong_python, "from nvembed_deploy.text import Batch", "text", "txt"),
    (wrong_python, "with open(x) as f:\n    pass", "    pass", "pass"),
]


@pytest.mark.parametrize(("check", "good", "old", "new"), FAULTS)
def test_a_check_passes_what_is_right_and_finds_a_planted_fault(
    check: Callable[[str], list[str]], good: str, old: str, new: str
) -> None:
    assert check(good) == []
    assert len(check(good.replace(old, new))) == 1


@pytest.mark.parametrize(
    ("link", "is_dead"),
    [
        ("docs/artifact.md", False),
        ("docs/artefact.md", True),
        ("docs/artifact.md#the-graph", False),
        ("docs/artifact.md#the-graf", True),
        ("#a-title-of-its-own", False),
        ("#another", True),
        ("../outside.md", True),
        ("https://example.org/nowhere", False),
    ],
)
def test_a_dead_link_is_found(link: str, is_dead: bool) -> None:
    page = f"# A `title`, of its own\n\nSee [there]({link}).\n"
    assert bool(dead_links(page, ROOT / "README.md")) is is_dead


def test_a_planted_fault_is_found_wherever_it_stands_in_a_page() -> None:
    page = "# Page\n\nRun `make x1`, `nvembed-deploy`, `nvembed-deploy[onnx]`.\n\n    make x2\n"
    page += "\n```sh\nmake x3\n```\n\n`gone.py`\n"
    assert sorted(faults(page, ROOT / "README.md")) == ["gone.py", "x1", "x2", "x3"]
    page = "```python\nfrom nvembed_deploy import x\n```\n\n```sh\nnvembed-deploy x\n```\n"
    assert len(faults(page, ROOT / "README.md")) == 2


def test_a_recipe_with_an_unknown_key_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("precison = 'fp16'\n")
    assert "unknown key 'precison'" in wrong_recipe(tmp_path / "wrong.toml")[0]
