"""Every name of TensorRT's that we use exists: in 11.4's real bindings, and in those for RTX.

There is no TensorRT on the machines that run these tests; a wrong name would show on a customer's
GPU. What we use is read from our own source: which class a variable holds is said once, below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvembed_deploy.tensorrt_api import Api
from tests.tensorrt_names import Names, installed_bindings, read_names, read_rtx_names

PACKAGE = Path(__file__).parents[1] / "nvembed_deploy"

HOLDS = {
    "tensorrt_api.py": {
        "builder": "Builder",
        "parser": "OnnxParser",
        "e": "ParserError",
        "config": "IBuilderConfig",
        "shapes": "IOptimizationProfile",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
        "self.module.Runtime(logger)": "Runtime",
    },
    "export/engine_build.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "timings": "ITimingCache",
    },
    "runtimes/loaded_engine.py": {
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "self._runtime": "Runtime",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "refitter": "Refitter",
        "parser_refitter": "OnnxParserRefitter",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
        "self._cache": "IRuntimeCache",
    },
}
"""By file: the expressions that are TensorRT's objects, and their classes."""
MODULES = {"trt", "api", "api.module", "self.module", "self._api.module"}
"""The expressions that are the module itself."""
OURS = {*dir(Api), "flavour", "module"}
"""What `Api` has, where a variable `api` is that and not the module."""
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "EngineInvalidityDiagnostics",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.set_runtime_cache",
    "CudaGraphStrategy.DISABLED",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "Runtime.engine_header_size",
    "Runtime.get_engine_validity",
}
"""Used only where the module has it, or for the flavour that has it."""


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's in our source: a class's, or with no class the module's own."""

    holder: str
    name: str
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as in the documentation."""
        return f"{self.holder}.{self.name}" if self.holder else self.name


def uses_of(source: str, holds: dict[str, str]) -> Iterator[Use]:
    """Yield what a file uses of TensorRT."""
    tree = ast.parse(source)
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _overrides(node)
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        call = calls.get(id(node))
        keywords = tuple(k.arg for k in call.keywords if k.arg) if call else ()
        if owner in MODULES and node.attr not in OURS and not node.attr.startswith("_"):
            yield Use("", node.attr)
        elif isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in MODULES:
            if node.value.attr not in OURS and not node.attr.startswith("__"):
                yield Use(node.value.attr, node.attr, keywords)
        elif owner in holds and not node.attr.startswith("_"):
            yield Use(holds[owner], node.attr, keywords)


def _overrides(node: ast.ClassDef) -> Iterator[Use]:
    """Yield the methods that a class of ours overrides: TensorRT calls them by name."""
    for base in node.bases:
        if isinstance(base, ast.Attribute) and ast.unparse(base.value) in MODULES:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name != "__init__":
                    yield Use(base.attr, part.name)


def unknown(uses: Iterator[Use], names: Names, exempt: set[str]) -> list[str]:
    """Return the uses of names, and of keywords, that do not exist."""
    wrong = []
    for use in uses:
        there = names if not use.holder else names.get(use.holder, {})
        if str(use) in exempt:
            continue
        if use.name not in there:
            wrong.append(str(use))
            continue
        text = str(there[use.name])
        wrong += [f"{use}({keyword}=)" for keyword in use.keywords if f"{keyword}:" not in text]
    return wrong


def source_of(file: str) -> str:
    return (PACKAGE / file).read_text("utf-8")


@pytest.fixture(scope="module")
def full() -> Names:
    """Names of TensorRT 11.4."""
    bindings = installed_bindings()
    if bindings is None:
        pytest.skip("tensorrt-cu13-bindings is not installed: pip install -e '.[dev]'")
    return read_names(bindings)


@pytest.fixture(scope="module")
def rtx() -> Names:
    """Names of TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    return read_rtx_names()


@pytest.mark.parametrize("file", HOLDS)
def test_full_tensorrt_has_every_name_that_we_use(full: Names, file: str) -> None:
    assert unknown(uses_of(source_of(file), HOLDS[file]), full, RTX_ONLY) == []


@pytest.mark.parametrize("file", HOLDS)
def test_tensorrt_for_rtx_has_every_name_that_we_use(rtx: Names, file: str) -> None:
    assert unknown(uses_of(source_of(file), HOLDS[file]), rtx, set()) == []


def test_each_exemption_is_used_and_really_missing_in_full_tensorrt(full: Names) -> None:
    uses = {str(use) for file in HOLDS for use in uses_of(source_of(file), HOLDS[file])}
    assert sorted(RTX_ONLY - uses) == []
    present = [
        name
        for name in RTX_ONLY
        if name in full or name.partition(".")[2] in full.get(name.partition(".")[0], {})
    ]
    assert present == []


@pytest.mark.parametrize("file", HOLDS)
def test_every_object_that_is_declared_is_used(file: str) -> None:
    used = {use.holder for use in uses_of(source_of(file), HOLDS[file])}
    assert set(HOLDS[file].values()) - used == set()


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("context.execute_async_v3(", "context.enqueue_v3(", "IExecutionContext.enqueue_v3"),
        ("USER_MANAGED", "USER_MANGED", "ExecutionContextAllocationStrategy.USER_MANGED"),
        ("device_memory_size_v2", "device_memory_size", "ICudaEngine.device_memory_size"),
        ("api.Refitter(", "api.IRefitter(", "IRefitter"),
        ("refit_from_file(", "refit_file(", "OnnxParserRefitter.refit_file"),
    ],
)
def test_a_planted_wrong_name_is_found(full: Names, right: str, wrong: str, found: str) -> None:
    file = "runtimes/loaded_engine.py"
    source = source_of(file)
    assert right in source
    planted = uses_of(source.replace(right, wrong), HOLDS[file])
    assert found in unknown(planted, full, RTX_ONLY)


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("ignore_mismatch=", "ignore_missmatch=", "IBuilderConfig.set_timing_cache(ignore_miss"),
        ("def step_complete(", "def step_done(", "IProgressMonitor.step_done"),
        ("BuilderFlag.STRIP_PLAN", "BuilderFlag.STRIP", "BuilderFlag.STRIP"),
    ],
)
def test_a_planted_wrong_keyword_override_or_member_is_found(
    full: Names, right: str, wrong: str, found: str
) -> None:
    source = source_of("tensorrt_api.py").replace(right, wrong)
    wrongs = unknown(uses_of(source, HOLDS["tensorrt_api.py"]), full, RTX_ONLY)
    assert [name for name in wrongs if name.startswith(found)] != []
