"""The shape of the repository: layers, size budgets, mirrored tests, and nothing that leaks."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "nvembed_deploy"

LAYERS = (
    {
        "engine_record",
        "errors",
        "filelock",
        "installed",
        "kinds",
        "onnx_session",
        "spec",
        "text_head",
    },
    {"cli", "config", "gguf_header", "manifest", "staging", "tensordtype", "text", "tomlfile"},
    {"artifact", "artifact_lock", "gguf_tokenizer", "tensorrt_api", "tensorwriter"},
    {"tensorfile"},
    {"gguf"},
    {"checkpoint"},
    {"model", "stamps"},
    {"train", "export", "runtimes"},
    {"parity", "bench", "serve"},
    {"commands"},
    {"__main__"},
)
"""From the bottom up. A part imports from lower layers only, never from its own."""

SOURCE_LINES, TEST_LINES, BODY_LINES, PARAMETERS = 300, 400, 50, 5

TESTED_IN = {
    # One behaviour in several files: tested where it shows.
    "artifact_lock": "parity/test_main",
    "stamps": "parity/test_side",
    "export/builder": "export/test_graph",
    "export/check_texts": "export/test_check",
    "export/dialect": "export/test_graph",
    "export/dry_run": "export/test_main",
    "export/engine_add": "commands/test_compile_engine",
    "export/estimate": "export/test_main",
    "export/formats": "export/test_quantize",
    "export/graph_linear": "export/test_calibrate",
    "export/linear_weights": "export/test_linear",
    "export/nearest": "export/test_linear",
    "export/pooler": "export/test_graph",
    "export/quantized": "export/test_quantize",
    "export/memory": "export/test_check",
    "export/weight_file": "e2e/test_checkpoint_to_encoder",
    "model/device": "runtimes/test_torch_runtime",
    "model/nvembed": "model/test_pooler",
    "model/packed/__init__": "model/packed/test_model",
    "model/packed/layer": "model/packed/test_model",
    "model/packed/pooler": "model/packed/test_model",
    "model/packed/reader": "e2e/test_checkpoint_to_encoder",
    "runtimes/__init__": "runtimes/test_load_encoder",
    "runtimes/batch_buffers": "runtimes/test_tensorrt_runtime",
    "runtimes/reference_runtime": "parity/test_faults",
    "runtimes/torch_device": "runtimes/test_torch_runtime",
    # The command line, run as a user does.
    "bench/charts": "bench/test_report_html",
    "bench/run": "bench/test_main",
    "bench/subject": "bench/test_main",
    "bench/table": "bench/test_main",
    "bench/worker": "bench/test_process",
    "bench/competitors/device": "bench/competitors/test_same_model",
    "bench/competitors/features": "bench/competitors/test_same_model",
    "bench/competitors/plain_forward": "bench/competitors/test_same_model",
    "bench/competitors/sentence_encoder": "bench/competitors/test_same_model",
    "__main__": "test_cold_import",
    "parity/check": "parity/test_main",
    "parity/embedding": "parity/test_faults",
    "parity/report": "parity/test_main",
    "parity/subject": "parity/test_faults",
    "parity/verdict": "parity/test_faults",
    "train/example": "train/test_sources",
    "train/run_data": "train/test_loop",
    "train/saved": "train/test_loop",
    "train/start": "train/test_learner",
    # Plain data, protocols and a PEP 562 attribute.
    "__init__": "e2e/test_checkpoint_to_encoder",
    "errors": "test_artifact",
    "runtimes/protocol": "runtimes/test_encoder",
    "spec": "test_manifest",
}
"""Modules without a test file of their own, and the test file that would fail without them."""

LEAKS = {
    "a path of one machine": r"(?<![\w.])/(work|root|home|Users|opt/pypi|tmp/w)/",
    "unfinished work": r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b",
}
VAGUE = {"utils", "util", "common", "helper", "helpers", "manager", "misc", "base"}


@dataclass(frozen=True)
class Module:
    """A parsed source file; `name` is dotted, without the package."""

    name: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Yield what it imports of the package, as names of files, however deep the statement."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # `from x import y` is of module x.y if there is one, else of x
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                if target.startswith(PACKAGE + "."):
                    yield _file_of(target.removeprefix(PACKAGE + "."))


def _file_of(name: str) -> str:
    path = ROOT / PACKAGE / name.replace(".", "/")
    return name if path.is_dir() or path.with_suffix(".py").exists() else name.rpartition(".")[0]


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def load(path: Path) -> Module:
    relative = path.relative_to(ROOT / PACKAGE).with_suffix("")
    return Module(".".join(relative.parts), ast.parse(path.read_text(encoding="utf-8")))


MODULES = [load(path) for path in python_files(PACKAGE)]


def layer_of(name: str) -> int:
    """Return the layer of a module; the package's own `__init__` stands above all."""
    part = name.split(".", maxsplit=1)[0]
    if part == "__init__":
        return len(LAYERS)
    levels = [level for level, parts in enumerate(LAYERS) if part in parts]
    assert levels, f"{PACKAGE}/{part} is in no layer: add it to LAYERS in {Path(__file__).name}"
    return levels[0]


def wrong_imports(module: Module) -> list[str]:
    """Return what the module imports from its own layer or from above."""
    part = module.name.split(".")[0]
    return [
        f"{module.name} imports {target}"
        for target in module.imports()
        if target and target.split(".")[0] != part and layer_of(target) >= layer_of(module.name)
    ]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([name for name in names if name.arg not in {"self", "cls"}])


def published_files() -> list[Path]:
    """Return the files under version control, or none outside a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_imports_go_down_only(module: Module) -> None:
    assert not wrong_imports(module)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("export.graph", "from nvembed_deploy.runtimes.encoder import Encoder"),
        ("export.graph", "def f():\n    import nvembed_deploy.runtimes"),
        ("errors", "from nvembed_deploy import spec"),
        ("model.fold", "from nvembed_deploy.commands import encode"),
        ("text", "import nvembed_deploy.artifact as a"),
    ],
)
def test_a_planted_wrong_import_is_found(name: str, line: str) -> None:
    assert len(wrong_imports(Module(name, ast.parse(line)))) == 1


def test_no_import_goes_round_in_a_circle() -> None:
    graph = {
        m.name.removesuffix(".__init__"): {target for target in m.imports() if target}
        for m in MODULES
        if m.name != "__init__"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("folder", "limit"),
    [
        (PACKAGE, SOURCE_LINES),
        ("demo", SOURCE_LINES),
        ("benchmarks", SOURCE_LINES),
        ("tests", TEST_LINES),
    ],
)
def test_files_fit_their_budget(folder: str, limit: int) -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in python_files(folder)}
    assert {str(path): length for path, length in lengths.items() if length > limit} == {}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_functions_fit_their_budget(module: Module) -> None:
    source = (ROOT / PACKAGE / (module.name.replace(".", "/") + ".py")).read_text("utf-8")
    lines = source.splitlines()
    for function in functions(module.tree):
        assert body_lines(function) <= BODY_LINES, function.name
        if "noqa: PLR0913" not in lines[function.lineno - 1]:
            assert num_parameters(function) <= PARAMETERS, function.name


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
def test_a_module_says_what_it_owns(module: Module) -> None:
    assert " owns " in (ast.get_docstring(module.tree) or "").replace("\n", " ")


@pytest.mark.parametrize("folder", ["tests", "demo", "benchmarks", "examples"])
def test_every_other_file_has_a_docstring(folder: str) -> None:
    trees = {p: ast.parse(p.read_text("utf-8")) for p in python_files(folder)}
    assert [str(p) for p, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


@pytest.mark.parametrize(
    ("folder", "needed"),
    [("train", []), ("export", []), ("runtimes", ["triton/nv-embed/1/model.py"])],
)
def test_the_root_folders_hold_no_code(folder: str, needed: list[str]) -> None:
    """Triton looks for a model.py: an import, which is tested as the module that it imports."""
    assert [str(path.relative_to(ROOT / folder)) for path in python_files(folder)] == needed
    for name in needed:
        tree = ast.parse((ROOT / folder / name).read_text("utf-8"))
        kinds = [type(node) for node in tree.body]
        assert kinds == [ast.Expr, ast.ImportFrom]


def test_names_are_not_vague() -> None:
    assert [m.name for m in MODULES if VAGUE & set(m.name.split("."))] == []


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_leaks_into_the_repository(leak: str) -> None:
    found = []
    for path in published_files():
        if path.is_file() and path.suffix not in {".npy", ".safetensors", ".png"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in re.finditer(LEAKS[leak], text)]
    assert found == []


def mirror(name: str) -> Path:
    """Return the test file of a module: test_main.py for export/__main__."""
    folder, _, file = name.rpartition("/")
    return ROOT / "tests" / folder / f"test_{file.strip('_')}.py"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if any(functions(m.tree))], ids=lambda m: m.name
)
def test_every_module_has_its_test_file(module: Module) -> None:
    name = module.name.replace(".", "/")
    if not mirror(name).exists():
        assert name in TESTED_IN, f"write {mirror(name).relative_to(ROOT)}"
        assert (ROOT / "tests" / f"{TESTED_IN[name]}.py").exists()


def test_the_list_of_exceptions_names_only_what_exists() -> None:
    missing = [name for name in TESTED_IN if not (ROOT / PACKAGE / f"{name}.py").exists()]
    assert missing == []


def test_no_exception_has_a_test_file_after_all() -> None:
    assert [name for name in TESTED_IN if mirror(name).exists()] == []
