"""Tests of runtimes/onnx_tensorrt.py: what ONNX Runtime's TensorRT providers are told."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from nvembed_deploy.artifact import Artifact, open_artifact
from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.errors import HardwareError, InputError, MissingPackageError
from nvembed_deploy.runtimes import onnx_tensorrt
from nvembed_deploy.runtimes.onnx_runtime import OnnxRuntime
from nvembed_deploy.runtimes.onnx_tensorrt import (
    graph_and_context,
    load_gpu_libraries,
    profile_of,
    rtx_device,
    rtx_options,
    tensorrt_options,
)
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.text import Tokenizer, collate


@pytest.fixture
def toy(toy_artifact: Path) -> Artifact:
    return open_artifact(toy_artifact)


def with_longest(artifact: Artifact, tokens: int) -> Artifact:
    spec = artifact.manifest.spec
    text = replace(spec.text, max_tokens=tokens)
    backbone = replace(spec.backbone, max_positions=tokens)
    spec = replace(spec, text=text, backbone=backbone)
    return replace(artifact, manifest=replace(artifact.manifest, spec=spec))


def test_the_profile_takes_every_length_and_as_many_texts_as_memory_holds(toy: Artifact) -> None:
    assert profile_of(with_longest(toy, 4096)) == Profile(
        "all", Shape(1, 2), Shape(8, 128), Shape(8, 4096)
    )
    assert profile_of(with_longest(toy, 32768)).max == Shape(1, 32768)
    assert profile_of(toy).max == Shape(512, 64)


def test_both_providers_get_all_three_shapes_of_all_three_inputs(toy: Artifact) -> None:
    expected = "input_ids:1x2,attention_mask:1x2,pool_mask:1x2"
    for prefix, options in (("trt", tensorrt_options(toy)), ("nv", rtx_options(toy))):
        assert options[f"{prefix}_profile_min_shapes"] == expected
        assert options[f"{prefix}_profile_max_shapes"] == expected.replace("1x2", "512x64")
        assert f"{prefix}_profile_opt_shapes" in options


def test_engines_are_cached_in_the_artifact(toy: Artifact) -> None:
    cache = toy.path / "engines" / "onnxruntime"
    options = tensorrt_options(toy)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(cache)
    assert rtx_options(toy)["nv_runtime_cache_path"] == str(cache)
    assert cache.is_dir()
    open_artifact(toy.path, "full")  # what a cache holds is not the manifest's business


def test_loading_libraries_prints_nothing_where_results_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    said = "Failed to load libcublas.so.13\n"
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write(said))
    with caplog.at_level(logging.INFO):
        load_gpu_libraries(tensorrt=True)
    assert capsys.readouterr().out == ""
    assert "Failed to load libcublas.so.13" in caplog.text


def test_precision_is_left_to_the_graph(toy: Artifact) -> None:
    """A precision flag makes the provider's network weakly typed."""
    names = {*tensorrt_options(toy), *rtx_options(toy)}
    assert [name for name in names if any(part in name for part in ("fp16", "bf16", "int8"))] == []


def test_an_artifact_that_cannot_be_written_is_used_without_a_cache(
    toy: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    (toy.path / "engines").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        assert "trt_engine_cache_path" not in tensorrt_options(toy)
    assert "compiled anew at each start" in caplog.text


def test_a_context_file_is_written_once_and_then_read(toy: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model_ctx.onnx"
    assert graph_and_context(toy, "tensorrt-rtx", str(path)) == (
        toy.graph,
        {
            "ep.context_enable": "1",
            "ep.context_file_path": str(path),
            "ep.context_embed_mode": "0",
        },
    )
    path.touch()
    assert graph_and_context(toy, "tensorrt-rtx", str(path)) == (path, {})
    assert graph_and_context(toy, "cpu", None) == (toy.graph, {})


def test_the_tensorrt_provider_writes_its_context_by_options_of_its_own(
    toy: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "model_ctx.onnx"
    assert graph_and_context(toy, "tensorrt", str(path)) == (toy.graph, {})
    options = tensorrt_options(toy, str(path))
    assert options["trt_dump_ep_context_model"] == "True"
    assert options["trt_ep_context_file_path"] == str(path)
    assert options["trt_ep_context_embed_mode"] == "0"
    path.touch()
    assert graph_and_context(toy, "tensorrt", str(path)) == (path, {})
    later = tensorrt_options(toy, str(path))
    for found in (options, later):  # an engine cache elsewhere is refused as a security risk
        assert not [name for name in found if name.startswith("trt_engine_cache")]
    assert "trt_dump_ep_context_model" not in later


def test_switches_are_words_as_the_binding_takes_them(toy: Artifact) -> None:
    """onnxruntime-gpu 1.31.1: "should be 'True' or 'False'"."""
    for options in (tensorrt_options(toy), tensorrt_options(toy, "x.onnx")):
        switches = {n: v for n, v in options.items() if n.endswith("_enable") or "dump" in n}
        assert set(switches.values()) == {"True"}


def test_a_context_file_for_a_device_that_compiles_nothing_is_refused(toy: Artifact) -> None:
    options = RuntimeOptions(device="cpu", context_file="x.onnx")
    with pytest.raises(InputError, match="device 'cpu' compiles no engine"):
        OnnxRuntime(toy, options)


def test_a_batch_is_run_in_parts_of_the_profile(
    toy: Artifact, expected_row: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = OnnxRuntime(toy, RuntimeOptions(device="cpu", threads=1))
    runtime._profiles = (Profile("all", Shape(1, 4), Shape(2, 8), Shape(3, 64)),)
    seen: list[tuple[int, ...]] = []
    run = runtime._run
    monkeypatch.setattr(
        runtime, "_run", lambda s, feed: seen.append(feed["input_ids"].shape) or run(s, feed)
    )
    texts = [f"w{i}" for i in range(8)]
    spec = toy.manifest.spec
    batch = collate(Tokenizer.load(toy.tokenizer, spec.text).tokenize(texts), spec.text.pad_id)
    np.testing.assert_allclose(
        runtime.embed(batch), [expected_row(text) for text in texts], atol=1e-6
    )
    assert [batch for batch, _ in seen] == [3, 3, 2]


def test_the_plugin_that_is_missing_is_named(
    toy: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_tensorrt, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="needs onnxruntime_ep_nv") as caught:
        OnnxRuntime(toy, RuntimeOptions(device="tensorrt-rtx"))
    assert "nvembed-deploy[onnx-tensorrt-rtx]" in caught.value.fix


@pytest.fixture
def broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose library is none: ONNX Runtime itself refuses it."""
    (tmp_path / "x.so").write_bytes(b"no library")
    plugin = SimpleNamespace(
        get_ep_name=lambda: "NvTensorRTRTXExecutionProvider",
        get_library_path=lambda: str(tmp_path / "x.so"),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setattr(onnx_tensorrt, "find_spec", lambda _: plugin)


def test_a_plugin_that_does_not_load_says_why(broken_plugin: None) -> None:
    with pytest.raises(HardwareError, match=r"NvTensorRTRTXExecutionProvider cannot be loaded"):
        rtx_device(0)


def test_a_plugin_on_a_machine_without_its_gpu_says_where_it_runs(
    broken_plugin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda _name, _path: None)
    with pytest.raises(HardwareError, match="knows 0 GPUs of this machine") as caught:
        rtx_device(0)
    assert "device='tensorrt'" in caught.value.fix
