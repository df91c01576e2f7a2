"""Tests of opening an engine as a user does; of NVIDIA, two modules are played."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.artifact import hash_file, record_engine
from nvembed_deploy.engine_record import EngineRecord, Flavour
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.runtimes import RuntimeOptions, engine_request, load_encoder
from nvembed_deploy.runtimes.tensorrt_runtime import TensorRTRuntime
from nvembed_deploy.tensorrt_api import MODULES
from tests.runtimes.host_gpu import RECORD, HostCuda, host_api

NAME = "engines/host.plan"
TEXTS = ["w1 w2", "w3 " * 30, "w4"]

Play = Callable[..., HostCuda]


@pytest.fixture
def play(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """A function that puts an engine into the toy artifact, and a GPU into this machine."""
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")

    def put(record: EngineRecord = RECORD, **gpu: object) -> HostCuda:
        (toy_artifact / "engines").mkdir(exist_ok=True)
        (toy_artifact / NAME).write_bytes(b"plan")
        record_engine(toy_artifact, NAME, record, hash_file(toy_artifact / NAME))
        cuda = HostCuda(**gpu)
        api, _ = host_api(toy_artifact / "model.onnx", cuda, record)
        api.module.__spec__ = ModuleSpec(MODULES[record.flavour], None)
        monkeypatch.setitem(sys.modules, MODULES[record.flavour], api.module)
        for module in ("runtime", "driver"):
            monkeypatch.setitem(sys.modules, f"cuda.bindings.{module}", cuda)
        return cuda

    return put


@pytest.mark.parametrize("flavour", list(Flavour))
def test_an_engine_is_opened_by_its_runtimes_name(
    toy_artifact: Path, play: Play, expected_row: Callable[..., np.ndarray], flavour: Flavour
) -> None:
    cuda = play(replace(RECORD, flavour=flavour))
    with load_encoder(toy_artifact, flavour.value, device="cuda:1") as encoder:
        assert isinstance(encoder.runtime, TensorRTRuntime)
        assert (encoder.runtime.name, encoder.runtime.device) == (flavour.value, "cuda:1")
        assert cuda.current == 0  # what other code of this thread runs on
        got = encoder.encode(TEXTS)
    np.testing.assert_allclose(got, [expected_row(text) for text in TEXTS], atol=1e-6)
    assert cuda.memory == {}


def test_auto_takes_the_engine_where_it_fits(toy_artifact: Path, play: Play) -> None:
    play()
    with load_encoder(toy_artifact) as encoder:
        assert encoder.runtime.name == "tensorrt"
    with load_encoder(toy_artifact, device="cpu") as encoder:
        assert encoder.runtime.name == "onnx"


def test_auto_leaves_an_engine_for_another_gpu(toy_artifact: Path, play: Play) -> None:
    play(capability=(8, 9))
    with load_encoder(toy_artifact) as encoder:
        assert encoder.runtime.name == "onnx"


def test_an_engine_for_another_gpu_is_refused_where_none_may_be_compiled(
    toy_artifact: Path, play: Play
) -> None:
    cuda = play(capability=(10, 0))
    options = RuntimeOptions(compiles_engines=False)
    with pytest.raises(
        ArtifactError, match=r"no engine for .* on sm100.*: .* is for sm90"
    ) as caught:
        load_encoder(toy_artifact, "tensorrt", options=options)
    assert caught.value.fix == f"nvembed-deploy compile {toy_artifact} --engine tensorrt"
    assert "cudaStreamDestroy" in cuda.calls


def test_an_engine_of_another_model_with_the_same_capability_is_refused(
    toy_artifact: Path, play: Play
) -> None:
    options = RuntimeOptions(compiles_engines=False)
    play(replace(RECORD, gpu="NVIDIA H100 PCIe"))
    with pytest.raises(ArtifactError, match=r"\(NVIDIA H200\): .* was tuned on NVIDIA H100 PCIe"):
        load_encoder(toy_artifact, "tensorrt", options=options)
    play(replace(RECORD, gpu="NVIDIA H200"))
    load_encoder(toy_artifact, "tensorrt", options=options).close()


def test_a_damaged_plan_is_told_by_its_hash(toy_artifact: Path, play: Play) -> None:
    cuda = play()
    (toy_artifact / NAME).write_bytes(b"PLAN")
    options = RuntimeOptions(compiles_engines=False)
    with pytest.raises(ArtifactError, match=r"host\.plan is damaged: got sha256") as caught:
        load_encoder(toy_artifact, "tensorrt", options=options)
    assert "compile" in caught.value.fix
    assert cuda.memory == {}


@pytest.mark.parametrize("content", [b"PLAN", b"pl", None], ids=["changed", "cut short", "gone"])
def test_a_damaged_plan_is_compiled_anew(
    toy_artifact: Path,
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    cuda = play()
    if content is None:
        (toy_artifact / NAME).unlink()
    else:
        (toy_artifact / NAME).write_bytes(content)

    def compile_anew(path: Path, *_: object) -> None:
        (path / NAME).write_bytes(b"plan")
        record_engine(path, NAME, RECORD, hash_file(path / NAME))

    monkeypatch.setattr("nvembed_deploy.runtimes.engine_request.request_engine", compile_anew)
    with load_encoder(toy_artifact, "tensorrt") as encoder:
        assert len(encoder.encode(TEXTS)) == len(TEXTS)
    assert f"{toy_artifact / NAME}" in caplog.text
    assert cuda.memory == {}
    load_encoder(toy_artifact, "onnx", device="cpu", verify="full").close()


@pytest.mark.parametrize("when", ["before it is hashed", "before it is removed"])
def test_what_another_process_compiled_meanwhile_is_taken(
    toy_artifact: Path, play: Play, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    play()
    (toy_artifact / NAME).write_bytes(b"PLAN")
    known = engine_request.hash_file

    def hash_slowly(path: Path) -> str:
        if when == "before it is hashed":
            path.unlink()
            with pytest.raises(FileNotFoundError):
                known(path)
        got = known(path) if path.exists() else None
        path.write_bytes(b"plan")
        record_engine(toy_artifact, NAME, replace(RECORD, seconds=9), "0" * 64)
        if got is None:
            raise FileNotFoundError
        return got

    monkeypatch.setattr(engine_request, "hash_file", hash_slowly)
    monkeypatch.setattr(engine_request, "request_engine", lambda *_: pytest.fail("compiled again"))
    with load_encoder(toy_artifact, "tensorrt") as encoder:
        assert len(encoder.encode(TEXTS)) == len(TEXTS)


def test_inspect_says_that_an_engine_is_gone(
    toy_artifact: Path, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play()
    (toy_artifact / NAME).unlink()
    for words in ([], ["--full"]):
        assert main(["inspect", str(toy_artifact), *words]) == 2
        said = capsys.readouterr().err
        assert NAME in said
        assert "fix: compile it anew" in said
        assert f"compile {toy_artifact} --engine tensorrt --overwrite, on sm90" in said


def test_an_engine_that_lies_elsewhere_is_left_out_and_never_opened(
    toy_artifact: Path, play: Play, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    play()
    (toy_artifact / "engines").rename(tmp_path / "elsewhere")
    (toy_artifact / "engines").symlink_to(tmp_path / "elsewhere")
    with load_encoder(toy_artifact) as encoder:
        assert encoder.runtime.name == "onnx"
    assert f"{NAME} leads to {tmp_path / 'elsewhere' / 'host.plan'}, outside" in caplog.text
    with pytest.raises(ArtifactError, match="outside the artifact"):
        load_encoder(toy_artifact, verify="full")


def test_an_artifact_without_its_plan_runs_its_graph(toy_artifact: Path, play: Play) -> None:
    play()
    (toy_artifact / NAME).unlink()
    with load_encoder(toy_artifact) as encoder:
        assert encoder.runtime.name == "onnx"


def test_a_whole_plan_that_is_refused_is_not_called_damaged(toy_artifact: Path, play: Play) -> None:
    play()
    (toy_artifact / NAME).write_bytes(b"good")
    record_engine(toy_artifact, NAME, RECORD, hash_file(toy_artifact / NAME))
    with pytest.raises(ArtifactError, match="did not load it") as caught:
        load_encoder(toy_artifact, "tensorrt")
    assert "damaged" not in caught.value.problem


def test_memory_that_does_not_suffice_says_so_and_is_given_back(
    toy_artifact: Path, play: Play
) -> None:
    cuda = play()
    cuda.most_bytes = 4000
    with pytest.raises(HardwareError, match="cudaErrorMemoryAllocation"):
        load_encoder(toy_artifact, "tensorrt")
    assert cuda.memory == {}
