"""Tests of the export command line: its plan, its answers, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvembed_deploy.artifact import LAYOUT, open_artifact
from nvembed_deploy.export import __main__ as main_module
from nvembed_deploy.export.__main__ import main
from nvembed_deploy.export.dry_run import to_text
from nvembed_deploy.export.estimate import Estimate, estimate
from nvembed_deploy.export.formats import Rounding
from nvembed_deploy.export.graph import author_graph
from nvembed_deploy.export.plan import Export, graph_options
from nvembed_deploy.export.recipe import ExportRecipe, load_recipe
from nvembed_deploy.spec import ModelSpec, Pooling, Precision
from tests import factories

GIB = 1 << 30
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED = {8: (4.2e9, 17, 40), 32: (14.7e9, 71, 215)}
"""Layers at full width: bytes, seconds to write and to check. Source: docs/numerics.md."""
MEASURED_PEAK = 0.5 * GIB + 1.28 * GIB
MEASURED_CALIBRATED_PEAK = 0.58 * GIB + 3.48 * GIB
"""The interpreter's imports, and the most above them. Source: docs/numerics.md."""
PLAN_KEYS = {
    "checkpoint": str,
    "out": str,
    "model": str,
    "layers": int,
    "hidden_size": int,
    "adapter": bool,
    "precision": str,
    "opset": int,
    "pooler": str,
    "files": list,
    "bytes": int,
    "num_nodes": int,
    "peak_ram_bytes": int,
    "seconds": float,
    "self_check_seconds": float,
    "engine_seconds": float,
}


@pytest.fixture
def export(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """Run the command on the tiny checkpoint, to the folder `out`."""

    def run(*options: object) -> SimpleNamespace:
        code = main([str(tiny_checkpoint), str(tmp_path / "out"), *map(str, options)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_plan_writes_nothing_and_knows_the_size(
    export: Callable[..., SimpleNamespace], tmp_path: Path, precision: str
) -> None:
    dry = export("--precision", precision, "--dry-run", "--json")
    assert (dry.code, dry.err, list(tmp_path.iterdir())) == (0, "", [])
    plan = json.loads(dry.out)
    assert {key: type(plan[key]) for key in PLAN_KEYS} == PLAN_KEYS
    done = export("--precision", precision)
    assert done.code == 0, done.err
    assert plan["bytes"] == pytest.approx(folder_bytes(tmp_path / "out"), rel=0.05)
    assert sorted(plan["files"]) == sorted(p.name for p in (tmp_path / "out").iterdir())


def test_the_plan_is_readable(export: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    dry = export("--dry-run")
    for said in ("3 layers", "fp16, opset 23, folded pooler", "model.onnx_data", "peak memory"):
        assert said in dry.out
    assert dry.out.endswith("to check on two cores\nnothing was written (--dry-run)\n")
    assert list(tmp_path.iterdir()) == []


def test_prompts_and_length_are_options(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    words = ("--prompt", "query=a=b\\n", "--prompt", "document=", "--max-tokens", 30)
    done = export("--precision", "fp32", *words)
    assert done.code == 0
    spec = open_artifact(tmp_path / "out").manifest.spec
    assert (spec.prompts, spec.text.max_tokens) == ({"query": "a=b\n", "document": ""}, 30)
    assert export("--prompt", "query").err.startswith("error: --prompt 'query' is no NAME=PREFIX")


def test_a_long_calibration_is_told_of_the_cache(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    def told(*options: object, seconds: float = 1e4) -> bool:
        plan = json.loads(export("--dry-run", "--json", *options).out)
        return "--cache DIR" in to_text(plan | {"seconds": seconds})

    assert told("--precision", "int8")
    assert not told("--precision", "int8", seconds=60)
    assert not told("--precision", "int8", "--cache", tmp_path)
    assert not told("--precision", "int8", "--rounding", "nearest")


def planned(layers: int, recipe: ExportRecipe) -> Export:
    """Return an export of NV-Embed's width, without a checkpoint."""
    spec = factories.with_layers(ModelSpec(), layers)
    block = author_graph(spec, graph_options(recipe))
    return Export(SimpleNamespace(spec=spec), SimpleNamespace(), recipe, block)


@pytest.mark.parametrize("layers", MEASURED)
def test_time_and_memory_of_the_full_width_are_told_within_a_half(layers: int) -> None:
    num_bytes, writing, checking = MEASURED[layers]
    export = planned(layers, ExportRecipe())
    assert export.num_bytes == pytest.approx(num_bytes, rel=0.01)
    told = estimate(export)
    for got, measured in (
        (told.seconds, writing),
        (told.self_check_seconds, checking),
        (told.peak_ram_bytes, MEASURED_PEAK),
    ):
        assert measured / 1.5 <= got <= measured * 1.5


def test_the_memory_of_calibrating_the_full_width_is_told_within_a_tenth() -> None:
    told = estimate(planned(1, ExportRecipe(scheme="int8")))
    assert told.peak_ram_bytes == pytest.approx(MEASURED_CALIBRATED_PEAK, rel=0.1)
    told = estimate(planned(1, ExportRecipe(scheme="fp8")))
    assert told.peak_ram_bytes == pytest.approx(MEASURED_CALIBRATED_PEAK + 0.37 * GIB, rel=0.05)


def test_a_pooler_that_is_not_there_takes_nothing() -> None:
    """The layers are so narrow that the latent pooler is the largest block."""
    narrow = replace(factories.TINY.backbone, hidden_size=4096, intermediate_size=64)

    def told(pooling: Pooling, recipe: ExportRecipe) -> Estimate:
        spec = ModelSpec(narrow, replace(ModelSpec().pooler, pooling=pooling))
        block = author_graph(spec, graph_options(recipe))
        return estimate(Export(SimpleNamespace(spec=spec), SimpleNamespace(), recipe, block))

    plain, calibrated = ExportRecipe(), ExportRecipe(scheme="int8")
    measured = ExportRecipe(scheme="int8", rounding=Rounding.NEAREST, keep_share=0.1)
    assert told(Pooling.LATENT, plain).seconds > 4, "5 were measured (docs/numerics.md)"
    assert told(Pooling.MEAN, plain).seconds < 1
    for recipe in (calibrated, measured):
        assert told(Pooling.LATENT, recipe).peak_ram_bytes > 1.4 * GIB
        assert told(Pooling.MEAN, recipe).peak_ram_bytes < 1 * GIB


@pytest.mark.parametrize("name", ["fp8", "fp8-rank-32"])
def test_an_engines_memory_and_time_are_told_as_measured(name: str) -> None:
    measured = json.loads((RESULTS / f"engine-full-size-{name}-sm89.json").read_text())
    rank, engine = measured["fp8_rank"], {"flavour": "tensorrt-rtx"}
    recipe = load_recipe(None, {"precision": "fp8", "fp8_rank": rank, "engine": engine})
    told = estimate(planned(32, recipe))
    without = estimate(planned(32, replace(recipe, engine=None)))
    assert told.engine_seconds == pytest.approx(measured["seconds"], rel=0.05)
    assert without.engine_seconds == 0
    taken = (measured["memory_taken_gib"] + 0.5) * GIB
    assert told.peak_ram_bytes == pytest.approx(taken, rel=0.1)
    assert without.peak_ram_bytes < 5 * GIB


@pytest.mark.parametrize("rounding", Rounding)
def test_measuring_what_to_keep_is_told_too(rounding: Rounding) -> None:
    told, without = (
        estimate(planned(32, ExportRecipe(scheme="fp8", rounding=rounding, keep_share=share)))
        for share in (0.1, 0.0)
    )
    assert told.seconds > without.seconds
    assert 2 << 30 < told.peak_ram_bytes < 4.5 * 2**30, "whatever the depth"


def test_json_is_the_manifest_with_place_and_time(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    done = export("--json", "--precision", "fp32")
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    assert answer.pop("seconds") > 0
    assert answer.pop("out") == str(tmp_path / "out")
    assert answer == json.loads((tmp_path / "out" / LAYOUT.manifest).read_text())


def test_an_existing_folder_is_replaced_only_when_asked(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    assert export("--precision", "fp32").code == 0
    before = (tmp_path / "out" / LAYOUT.manifest).read_bytes()
    refused = export("--precision", "fp16")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        f"error: {tmp_path / 'out'} exists\nfix: choose another folder, or add --overwrite\n"
    )
    assert (tmp_path / "out" / LAYOUT.manifest).read_bytes() == before
    assert export("--precision", "fp16", "--dry-run").code == 0
    assert (tmp_path / "out" / LAYOUT.manifest).read_bytes() == before
    assert export("--precision", "fp16", "--overwrite").code == 0
    assert open_artifact(tmp_path / "out", "full").manifest.precision is Precision.FP16


def test_a_folder_of_something_else_is_never_replaced(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    refused = export("--overwrite")
    assert refused.code == 2
    assert "it has no manifest.json, so something else made it" in refused.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_command_line_beats_the_recipe_and_the_recipe_the_defaults(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('out = "elsewhere"\nprecision = "bf16"\nopset = 20\npooler = "faithful"\n')
    plan = json.loads(export("--recipe", recipe, "--dry-run", "--json").out)
    assert (plan["precision"], plan["opset"], plan["pooler"]) == ("bf16", 20, "faithful")
    assert plan["out"] == str(tmp_path / "out")
    options = ("--precision", "fp32", "--opset", 23, "--pooler", "folded")
    plan = json.loads(export("--recipe", recipe, *options, "--dry-run", "--json").out)
    assert (plan["precision"], plan["opset"], plan["pooler"]) == ("fp32", 23, "folded")


def test_a_recipe_may_name_both_folders(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    out = tmp_path / "out"
    recipe.write_text(f"checkpoint = {json.dumps(str(tiny_checkpoint))}\nout = '{out}'\n")
    assert main(["--recipe", str(recipe)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} in ")
    assert open_artifact(out, "full").manifest.recipe["precision"] == "fp16"


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("onnx", "export"),
        ("onnx_ir", "export"),
        ("torch", "export"),
        ("transformers", "export"),
        ("onnxruntime", "onnx"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    export: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "nvembed_deploy.export.pipeline", raising=False)
    missed = export()
    assert (missed.code, missed.out) == (3, "")
    problem, fix = missed.err.splitlines()
    assert problem.endswith(f"needs {package}, which is not installed")
    assert fix == f"fix: pip install 'nvembed-deploy[{extra}]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "torch"])
def test_all_that_is_missing_is_installed_at_once(
    export: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The extra `export` has no ONNX Runtime: a host has one of its kinds."""
    for name in (package, "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "nvembed_deploy.export.pipeline", raising=False)
    assert export().err.endswith("fix: pip install 'nvembed-deploy[export,onnx]'\n")


def test_a_full_disk_is_said_before_anything_is_written(
    export: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    refused = export("--precision", "fp32")
    assert refused.code == 2
    assert f"error: {tmp_path} has 1000 B free, the artifact needs 7" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_refused_before_texts_are_seen(
    export: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = export("--precision", "int8", "--cache", tmp_path / "file" / "cache")
    assert done.code == 2
    assert f"cannot be made: {tmp_path / 'file'} is no folder" in done.err


@pytest.mark.parametrize(("place", "fits"), [("cache", False), ("elsewhere", True)])
def test_a_cache_on_the_same_disk_needs_space_too(
    export: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    fits: bool,
) -> None:
    size = json.loads(export("--precision", "int8", "--dry-run", "--json").out)["bytes"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1.5 * size))
    monkeypatch.setattr(main_module, "_disk_of", lambda path: "elsewhere" in path.parts)
    done = export("--precision", "int8", "--cache", tmp_path / place)
    assert done.code == (0 if fits else 2)
    assert ("the artifact and the cache of its blocks need" in done.err) is not fits


def test_a_missing_parent_folder_is_named(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert main([str(tiny_checkpoint), str(tmp_path / "no" / "out")]) == 2
    assert f"error: {tmp_path / 'no'} does not exist\nfix: create it" in capsys.readouterr().err
