"""Tests of onnx_runtime.py on the CPU provider, and of what it says where there is no GPU."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from nvembed_deploy.artifact import LAYOUT, open_artifact, read_manifest, write_manifest
from nvembed_deploy.errors import ArtifactError, HardwareError, InputError, MissingPackageError
from nvembed_deploy.runtimes.onnx_runtime import OnnxRuntime, _fit, _report_fallback, _Target
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Tokenizer, collate

CPU = RuntimeOptions(device="cpu", threads=1)


def open_toy(path: Path, options: RuntimeOptions = CPU) -> OnnxRuntime:
    return OnnxRuntime(open_artifact(path), options)


def embed(path: Path, runtime: OnnxRuntime, texts: list[str]) -> np.ndarray:
    spec = read_manifest(path).spec
    tokens = Tokenizer.load(path / LAYOUT.tokenizer, spec.text).tokenize(texts)
    return runtime.embed(collate(tokens, spec.text.pad_id))


def test_embeddings_are_what_the_graph_says(
    toy_artifact: Path, expected_row: Callable[..., np.ndarray]
) -> None:
    texts = ["w1 w2 w3", "w4"]
    got = embed(toy_artifact, open_toy(toy_artifact), texts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [expected_row(text) for text in texts], atol=1e-6)


def test_it_says_where_it_runs_and_how_long_a_text_may_be(toy_artifact: Path) -> None:
    runtime = open_toy(toy_artifact)
    assert (runtime.name, runtime.device, runtime.max_tokens) == ("onnx", "cpu", 64)


@pytest.mark.parametrize("changes", [{"use_arena": False}, {"shrink_arena": True}, {"threads": 2}])
def test_memory_and_thread_options_do_not_change_the_result(
    toy_artifact: Path, changes: dict[str, Any]
) -> None:
    texts = ["w1 w2 w3", "w4"]
    plain = embed(toy_artifact, open_toy(toy_artifact), texts)
    changed = embed(toy_artifact, open_toy(toy_artifact, replace(CPU, **changes)), texts)
    np.testing.assert_array_equal(changed, plain)


def test_a_provider_by_its_own_name_is_used(toy_artifact: Path) -> None:
    options = RuntimeOptions(providers=("CPUExecutionProvider",))
    assert open_toy(toy_artifact, options).device == "cpu"


@pytest.mark.parametrize(
    "options",
    [
        RuntimeOptions(device="cuda"),
        RuntimeOptions(device="tensorrt"),
        RuntimeOptions(providers=("CUDAExecutionProvider",)),
    ],
    ids=["cuda", "tensorrt", "providers"],
)
def test_a_gpu_asked_for_by_name_is_never_replaced_by_the_cpu(
    toy_artifact: Path, options: RuntimeOptions
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(MissingPackageError, match="ExecutionProvider was asked for") as caught:
        open_toy(toy_artifact, options)
    assert "nvembed-deploy[onnx-gpu]" in caught.value.fix


def test_a_silent_fallback_is_an_error_when_a_device_was_named() -> None:
    target = _Target("cuda:0", ("CUDAExecutionProvider",), is_named=True)
    with pytest.raises(HardwareError, match="CUDAExecutionProvider did not start on cuda:0"):
        _report_fallback(target, "no libcudnn")


def test_a_tensorrt_provider_that_does_not_start_names_the_version_it_wants() -> None:
    target = _Target("tensorrt:0", ("TensorrtExecutionProvider",), is_named=True)
    with pytest.raises(HardwareError, match="did not start on tensorrt:0") as caught:
        _report_fallback(target, "libnvinfer.so.10: cannot open shared object file")
    assert "tensorrt-cu13>=10.15,<11" in caught.value.fix


def test_a_silent_fallback_is_a_warning_when_none_was(caplog: pytest.LogCaptureFixture) -> None:
    target = _Target("cuda:0", ("CUDAExecutionProvider",), is_named=False)
    with caplog.at_level(logging.WARNING):
        _report_fallback(target, "no libcudnn")
    assert "no libcudnn; running on the CPU" in caplog.text


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1"])
def test_an_unknown_device_lists_the_known_ones(toy_artifact: Path, device: str) -> None:
    with pytest.raises(InputError, match="expected cpu, cuda, cuda:N"):
        open_toy(toy_artifact, RuntimeOptions(device=device))


def test_a_graph_without_pool_mask_is_refused(make_toy_artifact: Callable[..., Path]) -> None:
    path = make_toy_artifact(inputs=("input_ids", "attention_mask"))
    with pytest.raises(ArtifactError, match=r"expected \['attention_mask', 'input_ids', 'pool"):
        open_toy(path)


def test_a_graph_that_is_no_onnx_is_refused_with_its_path(toy_artifact: Path) -> None:
    (toy_artifact / LAYOUT.graph).write_bytes(b"no protobuf")
    manifest = read_manifest(toy_artifact)
    del manifest.files[LAYOUT.graph]
    write_manifest(toy_artifact, manifest)
    with pytest.raises(ArtifactError, match=r"cannot load .*model\.onnx"):
        open_toy(toy_artifact)


def test_closing_twice_is_fine_and_embedding_afterwards_is_not(toy_artifact: Path) -> None:
    runtime = open_toy(toy_artifact)
    runtime.close()
    runtime.close()
    with pytest.raises(InputError, match="is closed"):
        embed(toy_artifact, runtime, ["w1"])


def test_encoding_needs_neither_torch_nor_transformers(toy_artifact: Path) -> None:
    script = (
        "import sys\n"
        "from nvembed_deploy import load_encoder\n"
        f"assert load_encoder({str(toy_artifact)!r}, 'onnx').encode('w1').shape == (16,)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr


def test_a_bf16_graph_on_the_cpu_is_refused_with_the_reason(
    toy_artifact: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bf16"
    shutil.copytree(toy_artifact, copy)
    write_manifest(copy, replace(read_manifest(copy), precision=Precision.BF16))
    with pytest.raises(HardwareError, match="no kernels on the CPU"):
        open_toy(copy)


def test_a_graph_for_the_cpu_runs_there_and_is_refused_elsewhere(
    toy_artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cpu"
    shutil.copytree(toy_artifact, path)
    manifest = read_manifest(path)
    write_manifest(path, replace(manifest, recipe={**manifest.recipe, "kernels": "cpu"}))
    artifact = open_artifact(path)
    assert _fit(artifact, _Target("cuda:0", ("CUDA",), is_named=False)).device == "cpu"
    with pytest.raises(HardwareError, match="written for the CPU"):
        _fit(artifact, _Target("cuda:0", ("CUDA",), is_named=True))
