"""Tests of runtimes/__init__.py: which runtime opens which folder."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from nvembed_deploy import runtimes
from nvembed_deploy.artifact import LAYOUT, update_parity
from nvembed_deploy.errors import ArtifactError, InputError, MissingPackageError
from nvembed_deploy.runtimes import RUNTIMES, RuntimeOptions, load_encoder
from nvembed_deploy.spec import Precision


def test_auto_takes_onnx_where_it_is_installed(toy_artifact: Path) -> None:
    with load_encoder(str(toy_artifact)) as encoder:
        assert encoder.runtime.name == "onnx"


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_every_row_of_the_table_is_a_function(name: str) -> None:
    packages = {"onnx": "onnxruntime", "torch": "torch"}  # TensorRT's is imported when it runs
    pytest.importorskip(packages.get(name, "numpy"))
    module, _, function = RUNTIMES[name].partition(":")
    assert callable(getattr(import_module(module), function))


def test_an_unknown_runtime_lists_the_known_ones(toy_artifact: Path) -> None:
    with pytest.raises(InputError, match="'tensorflow', expected one of auto, onnx, torch"):
        load_encoder(toy_artifact, "tensorflow")


@pytest.mark.parametrize(("runtime", "extra"), [("auto", "[onnx]"), ("onnx", "[onnx]")])
def test_a_missing_runtime_names_what_to_install(
    toy_artifact: Path, runtime: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError) as caught:
        load_encoder(toy_artifact, runtime)
    assert f"nvembed-deploy{extra}" in caught.value.fix


def test_a_folder_that_is_neither_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json.*checkpoint\.json or config\.json"):
        load_encoder(tmp_path)


def test_a_checkpoint_is_not_opened_with_onnx(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text("{}")
    with pytest.raises(ArtifactError, match="the onnx runtime needs an artifact") as caught:
        load_encoder(tmp_path, "onnx")
    assert "nvembed_deploy.export" in caught.value.fix


def test_a_checkpoint_has_no_parity_verdict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="require_parity needs an artifact"):
        load_encoder(tmp_path, require_parity=True)


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_parity_can_be_required(toy_artifact: Path, device: str) -> None:
    with pytest.raises(ArtifactError, match="has no verdict"):
        load_encoder(toy_artifact, device=device, require_parity=True)
    update_parity(toy_artifact, {"passed": False, "min_cosine": 0.7})
    with pytest.raises(ArtifactError, match="has a failed verdict"):
        load_encoder(toy_artifact, device=device, require_parity=True)
    update_parity(toy_artifact, {"passed": True, "min_cosine": 0.9999})
    load_encoder(toy_artifact, device=device, require_parity=True).close()


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_changed_weights_are_found_when_asked(toy_artifact: Path, device: str) -> None:
    weights = bytearray((toy_artifact / LAYOUT.weights).read_bytes())
    weights[-1] ^= 1
    (toy_artifact / LAYOUT.weights).write_bytes(weights)
    with pytest.raises(ArtifactError, match="was changed"):
        load_encoder(toy_artifact, device=device, verify="full")


@pytest.mark.parametrize("verify", ["ful", True, None])
def test_what_verify_may_be_is_said(toy_artifact: Path, verify: Any) -> None:
    with pytest.raises(InputError, match="expected one of fast, full"):
        load_encoder(toy_artifact, verify=verify)


@pytest.mark.parametrize("device", [0, torch.device("cpu"), "", "cpu,", "cuda:0, ,cuda:1"])
def test_a_device_without_a_name_is_refused_and_not_passed_over(
    toy_artifact: Path, device: Any
) -> None:
    with pytest.raises(InputError, match="expected a name, or several with commas"):
        load_encoder(toy_artifact, device=device)


@pytest.mark.parametrize("threads", [0, -1, 2.5, "4", True, 1025, 10**11])
def test_threads_that_are_no_number_of_them_are_refused(threads: Any) -> None:
    with pytest.raises(InputError, match=f"threads is {threads!r}"):
        RuntimeOptions(threads=threads)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"max_batch_tokens": 0},
        {"memory_limit_bytes": "8GB"},
        {"max_batch_tokens": "5"},
        {"providers": "CPUExecutionProvider"},
    ],
    ids=str,
)
def test_options_are_refused_before_a_model_is_loaded(options: Any) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name} is '?{options[name]}"):
        RuntimeOptions(**options)


def test_a_number_format_may_be_its_name() -> None:
    assert RuntimeOptions(dtype="fp16").dtype == Precision.FP16  # type: ignore[arg-type]


def test_a_manifest_nested_without_end_is_refused(toy_artifact: Path) -> None:
    (toy_artifact / LAYOUT.manifest).write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_encoder(toy_artifact)


def test_a_changed_manifest_of_another_version_is_refused(toy_artifact: Path) -> None:
    path = toy_artifact / LAYOUT.manifest
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    with pytest.raises(ArtifactError, match="got schema_version 9, expected 1"):
        load_encoder(toy_artifact)


def test_the_token_budget_can_be_given(toy_artifact: Path) -> None:
    options = RuntimeOptions(device="cpu", max_batch_tokens=77)
    with load_encoder(toy_artifact, options=options) as encoder:
        assert encoder.limits.max_batch_tokens == 77


def test_the_device_argument_beats_the_options(toy_artifact: Path) -> None:
    options = RuntimeOptions(device="nonsense")
    with load_encoder(toy_artifact, "onnx", device="cpu", options=options) as encoder:
        assert encoder.runtime.device == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 are Linux's")
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_folder_that_is_not_utf8_is_told_before_the_model_is_read(
    toy_artifact: Path, runtime: str
) -> None:
    folder = toy_artifact.rename(toy_artifact.with_name("a\udcff"))
    with pytest.raises(ArtifactError, match=r"udcff/tokenizer.json' is no UTF-8 path"):
        load_encoder(folder, runtime, device="cpu")
