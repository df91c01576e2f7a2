"""What works on a host without the heavy packages: every --help, and every light module."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nvembed_deploy"

HEAVY = (
    "accelerate",
    "cuda",
    "datasets",
    "gguf",
    "matplotlib",
    "mteb",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "peft",
    "pyarrow",
    "pydantic",
    "ray",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "transformers",
)
NEEDS = {
    "nvembed_deploy.bench.competitors.device": "torch",
    "nvembed_deploy.bench.competitors.plain_forward": "torch",
    "nvembed_deploy.bench.competitors.sentence_encoder": "torch",
    "nvembed_deploy.bench.competitors.traced_graph": "onnxruntime",
    "nvembed_deploy.export.blocks": "torch",
    "nvembed_deploy.export.builder": "onnx_ir",
    "nvembed_deploy.export.calibrate": "torch",
    "nvembed_deploy.export.check": "onnx_ir",
    "nvembed_deploy.export.compensate": "torch",
    "nvembed_deploy.export.cpu_linear": "onnx_ir",
    "nvembed_deploy.export.dialect": "onnx_ir",
    "nvembed_deploy.export.energy": "torch",
    "nvembed_deploy.export.fp8_attention": "onnx_ir",
    "nvembed_deploy.export.graph": "onnx_ir",
    "nvembed_deploy.export.graph_linear": "torch",
    "nvembed_deploy.export.linear": "onnx_ir",
    "nvembed_deploy.export.measured": "onnx_ir",
    "nvembed_deploy.export.nearest": "torch",
    "nvembed_deploy.export.pipeline": "onnx",
    "nvembed_deploy.export.plan": "onnx_ir",
    "nvembed_deploy.export.layout": "onnx_ir",
    "nvembed_deploy.export.mean": "onnx_ir",
    "nvembed_deploy.export.pooler": "onnx_ir",
    "nvembed_deploy.export.principal": "torch",
    "nvembed_deploy.export.quantize": "torch",
    "nvembed_deploy.export.ranges": "torch",
    "nvembed_deploy.export.row_ranges": "torch",
    "nvembed_deploy.export.sensitivity": "torch",
    "nvembed_deploy.export.weight_file": "onnx_ir",
    "nvembed_deploy.model.backbone": "torch",
    "nvembed_deploy.model.device": "torch",
    "nvembed_deploy.model.nvembed": "torch",
    "nvembed_deploy.model.packed.attention": "torch",
    "nvembed_deploy.model.packed.batch": "torch",
    "nvembed_deploy.model.packed.fp8_product": "torch",
    "nvembed_deploy.model.packed.kernels": "torch",
    "nvembed_deploy.model.packed.layer": "torch",
    "nvembed_deploy.model.packed.linear": "torch",
    "nvembed_deploy.model.packed.loader": "torch",
    "nvembed_deploy.model.packed.model": "torch",
    "nvembed_deploy.model.packed.pooler": "torch",
    "nvembed_deploy.model.pooler": "torch",
    "nvembed_deploy.model.streaming": "torch",
    "nvembed_deploy.parity.mteb_encoder": "datasets",
    "nvembed_deploy.runtimes.onnx_runtime": "onnxruntime",
    "nvembed_deploy.runtimes.packed_runtime": "torch",
    "nvembed_deploy.runtimes.reference_runtime": "torch",
    "nvembed_deploy.runtimes.torch_device": "torch",
    "nvembed_deploy.runtimes.torch_runtime": "torch",
    "nvembed_deploy.train.batch": "pydantic",
    "nvembed_deploy.train.data.build": "pydantic",
    "nvembed_deploy.train.data.labelled": "pydantic",
    "nvembed_deploy.train.data.plan": "pydantic",
    "nvembed_deploy.train.data.scored": "pydantic",
    "nvembed_deploy.train.gradcache": "torch",
    "nvembed_deploy.train.learner": "torch",
    "nvembed_deploy.train.loop": "torch",
    "nvembed_deploy.train.loss": "torch",
    "nvembed_deploy.train.mixture": "pydantic",
    "nvembed_deploy.train.recipe": "pydantic",
    "nvembed_deploy.train.run_data": "pydantic",
    "nvembed_deploy.train.run_folder": "pydantic",
    "nvembed_deploy.train.saved": "torch",
    "nvembed_deploy.train.section": "pydantic",
    "nvembed_deploy.train.shard": "torch",
    "nvembed_deploy.train.sources": "pydantic",
    "nvembed_deploy.train.start": "pydantic",
    "nvembed_deploy.train.tracking": "pydantic",
}
"""Modules that cannot be imported without a heavy package, and the one they miss first."""

HIDE = """
import atexit, sys
from importlib.machinery import PathFinder

heavy, hidden = set({heavy!r}), set({hidden!r})
find_spec = PathFinder.find_spec

def without_hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

PathFinder.find_spec = without_hidden
atexit.register(lambda: print(*sorted(heavy & set(sys.modules)), file=sys.stderr))
"""
"""Makes packages look not installed, and prints the heavy ones that were imported at the end."""

RUN = "import runpy; sys.argv = {argv!r}; runpy.run_module({module!r}, run_name='__main__')"

COMMANDS = [
    ["nvembed_deploy"],
    ["nvembed_deploy", "assemble"],
    ["nvembed_deploy", "export"],
    ["nvembed_deploy", "compile"],
    ["nvembed_deploy", "inspect"],
    ["nvembed_deploy", "encode"],
    ["nvembed_deploy", "parity"],
    ["nvembed_deploy", "bench"],
    ["nvembed_deploy", "train"],
    ["nvembed_deploy", "build-data"],
    ["nvembed_deploy", "mine"],
    ["nvembed_deploy", "synthesize"],
    ["nvembed_deploy.export"],
    ["nvembed_deploy.parity"],
    ["nvembed_deploy.bench"],
    ["nvembed_deploy.train"],
]


@dataclass(frozen=True)
class Result:
    """How a command ended, and the heavy packages that it had imported by then."""

    code: int
    out: str
    err: str
    imported: list[str]


def python(code: str, hidden: tuple[str, ...] = HEAVY) -> Result:
    """Run code in a new interpreter in which the `hidden` packages look not installed."""
    program = HIDE.format(heavy=HEAVY, hidden=hidden) + code
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    *err, imported = done.stderr.splitlines()
    return Result(done.returncode, done.stdout, "\n".join(err), imported.split())


def command(*words: str, hidden: tuple[str, ...] = HEAVY) -> Result:
    """Run `python -m WORDS`."""
    return python(RUN.format(module=words[0], argv=list(words)), hidden)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_works_without_the_heavy_packages(words: list[str]) -> None:
    result = command(*words, "--help")
    assert result.code == 0, result.err
    assert result.out.startswith("usage: ")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_no_heavy_package_where_they_are_installed(words: list[str]) -> None:
    assert command(*words, "--help", hidden=()).imported == []


def test_all_other_modules_import_without_the_heavy_packages() -> None:
    files = [p.relative_to(ROOT).with_suffix("") for p in sorted(PACKAGE.rglob("*.py"))]
    names = [".".join(p.parts).removesuffix(".__init__") for p in files]
    result = python(
        "import importlib, json\n"
        "missing = {}\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        missing[name] = error.name\n"
        "print(json.dumps(missing))"
    )
    assert json.loads(result.out) == NEEDS
    assert result.imported == []


def test_the_front_door_is_light_until_a_runtime_is_asked_for() -> None:
    result = python("from nvembed_deploy import load_encoder, __version__")
    assert (result.code, result.imported) == (0, [])


def test_the_version_is_printed() -> None:
    result = command("nvembed_deploy", "--version")
    assert (result.code, result.out.count(".")) == (0, 2)


def test_exporting_without_onnx_names_the_extra(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = command("nvembed_deploy.export", str(tiny_checkpoint), str(tmp_path / "out"))
    assert result.code == 3
    assert result.err.startswith("error: exporting needs onnx, which is not installed")
    assert "fix: pip install 'nvembed-deploy[export,onnx]'" in result.err


def test_encoding_without_a_runtime_names_the_extras(tiny_artifact: Path) -> None:
    result = command("nvembed_deploy", "encode", str(tiny_artifact), "--text", "hello")
    assert result.code == 3
    assert "fix: pip install 'nvembed-deploy[onnx]', [onnx-gpu] or [torch]" in result.err


def test_making_data_without_its_packages_names_the_extra(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    result = command("nvembed_deploy", "build-data", "plan.toml", "--out", out)
    assert result.code == 3
    assert "needs pydantic" in result.err
    assert "fix: pip install 'nvembed-deploy[train]'" in result.err


def test_inspecting_and_encoding_an_artifact_need_no_torch(tiny_artifact: Path) -> None:
    hidden = tuple(name for name in HEAVY if name != "onnxruntime")
    shown = command("nvembed_deploy", "inspect", str(tiny_artifact), "--full", hidden=hidden)
    assert (shown.code, shown.imported) == (0, []), shown.err
    encoded = command("nvembed_deploy", "encode", str(tiny_artifact), "--text", "a", hidden=hidden)
    assert (encoded.code, encoded.imported) == (0, ["onnxruntime"]), encoded.err


def test_assembling_needs_no_heavy_package(
    tiny_base: Path, tiny_pooler: Path, tmp_path: Path
) -> None:
    sizes = ["--latents", "12", "--heads", "2", "--head-width", "64", "--feed-width", "256"]
    words = [str(tiny_base), str(tmp_path / "out"), "--pooler", str(tiny_pooler), *sizes]
    result = command("nvembed_deploy", "assemble", *words)
    assert (result.code, result.imported) == (0, []), result.err
    assert (tmp_path / "out" / "checkpoint.json").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["inspect", "nowhere"], "error: nowhere"),
        (["encode", "nowhere", "--text", "a"], "error: nowhere"),
        (["export", "nowhere", "out"], "error: checkpoint nowhere does not exist"),
        (["export"], "error: checkpoint is not given"),
        (
            ["export", "a", "b", "--recipe", "nowhere.toml"],
            "error: recipe nowhere.toml does not exist",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_two_lines_and_exit_code_2(words: list[str], problem: str) -> None:
    result = command("nvembed_deploy", *words, hidden=())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(problem), result.err
    assert "\nfix: " in result.err
    assert "Traceback" not in result.err
