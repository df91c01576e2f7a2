"""Tests of runtimes/loaded_engine.py: what is loaded is what the record says, or an error says why.

TensorRT for RTX itself refuses a real plan here where there is no GPU.
"""

from __future__ import annotations

import errno
import gc
import logging
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nvembed_deploy.artifact import open_artifact
from nvembed_deploy.engine_record import EngineRecord, Flavour
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.runtimes.cuda_memory import OUT_OF_MEMORY_FIX
from nvembed_deploy.runtimes.loaded_engine import LoadedEngine
from nvembed_deploy.tensorrt_api import Api, gpu_target, load_api
from tests.runtimes.host_gpu import RECORD, TENSORS, HostCache, HostCuda, host_api, host_engine

RTX = replace(RECORD, flavour=Flavour.RTX, version="1.7.1.116")


def load(artifact: Path, api: Api, record=RECORD) -> LoadedEngine:
    plan = artifact / "engines" / "x.plan"
    plan.parent.mkdir(exist_ok=True)
    if not plan.exists():
        plan.write_bytes(b"plan")
    return LoadedEngine(api, plan, record, artifact / "model.onnx")


@pytest.mark.skipif(gpu_target() is not None, reason="this machine has a GPU")
def test_a_real_plan_on_a_machine_without_a_gpu_names_the_driver(rtx_artifact: Path) -> None:
    api = load_api(Flavour.RTX)
    artifact = open_artifact(rtx_artifact)
    ((name, record),) = artifact.manifest.engines.items()
    with pytest.raises(HardwareError, match=r"did not load it(.*\n)+.*CUDA") as caught:
        LoadedEngine(api, rtx_artifact / name, record, artifact.graph)
    assert "NVIDIA driver" in caught.value.fix


def test_a_damaged_plan_is_told_from_a_missing_gpu(toy_artifact: Path) -> None:
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda())
    (toy_artifact / "engines").mkdir()
    for data in (b"not a plan", b""):
        (toy_artifact / "engines" / "x.plan").write_bytes(data)
        with pytest.raises(ArtifactError, match=r"11\.4\.0\.106 .*load it.*x\.plan") as caught:
            load(toy_artifact, api)
        command = f"nvembed-deploy compile {toy_artifact} --engine tensorrt --overwrite, on sm90"
        assert command in caught.value.fix


def test_a_plan_of_rtx_is_compiled_again_for_the_gpus_that_it_was_for(toy_artifact: Path) -> None:
    record = replace(RTX, targets=("sm89", "sm120"))
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda(), record)
    (toy_artifact / "engines").mkdir()
    (toy_artifact / "engines" / "x.plan").write_bytes(b"not a plan")
    with pytest.raises(ArtifactError, match="load it") as caught:
        load(toy_artifact, api, record)
    assert "--engine tensorrt-rtx --target sm89,sm120 --overwrite" in caught.value.fix


def test_an_engine_is_freed_as_soon_as_nobody_holds_it(toy_artifact: Path) -> None:
    """The real Runtime keeps its logger where the collector cannot see it."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    api, engine = host_api(toy_artifact / "model.onnx", HostCuda(), RTX)

    class Runtime(trt.Runtime):  # type: ignore[misc, name-defined]
        """Loads the engine that is played, as no real one loads without a GPU."""

        def __del__(self) -> None:
            """The bindings' own only warns."""

        def deserialize_cuda_engine(self, _data: object) -> Any:
            return engine

    api.module.ILogger, api.module.Runtime = trt.ILogger, Runtime
    gc.disable()
    try:
        loaded = load(toy_artifact, api, RTX)
        freed = weakref.ref(loaded)
        del loaded
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "said",
    [
        "Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (9 bytes) could not be allocated.",
        "Error Code 2: OutOfMemory (no further information)",
        "cudaErrorMemoryAllocation",
    ],
)
def test_memory_that_runs_out_is_blamed_on_neither_plan_nor_driver(
    toy_artifact: Path, said: str
) -> None:
    loaded, engine = host_engine(toy_artifact, HostCuda())
    engine.room = 0
    loaded._logger.log(1, said)
    with pytest.raises(HardwareError, match="did not make an execution context") as caught:
        loaded.context(0, stream=7)
    assert said in caught.value.problem
    assert caught.value.fix == OUT_OF_MEMORY_FIX
    with pytest.raises(ArtifactError, match="did not take profile 2") as later:
        engine.room = 1
        loaded.context(2, stream=7)
    assert said not in later.value.problem


@pytest.mark.parametrize(
    ("found", "kind", "names"),
    [
        (16, HardwareError, "INSUFFICIENT_GPU_MEMORY"),
        (4, HardwareError, "OLD_CUDA_DRIVER"),
        (2, HardwareError, "UNSUPPORTED_CC"),
        (33, ArtifactError, "VERSION_MISMATCH, MALFORMED_ENGINE"),
    ],
)
def test_rtx_names_what_a_plans_header_says_against_the_machine(
    toy_artifact: Path, found: int, kind: type[Exception], names: str
) -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda(), RTX)
    api.module.EngineInvalidityDiagnostics = real.EngineInvalidityDiagnostics
    api.module.Runtime = lambda _logger: SimpleNamespace(
        deserialize_cuda_engine=lambda _: None,
        engine_header_size=4,
        get_engine_validity=lambda header: (real.EngineValidity.INVALID, found * (len(header) > 3)),
    )
    with pytest.raises(kind, match=rf"did not load it \({names}\)"):
        load(toy_artifact, api, RTX)


@pytest.mark.parametrize(
    ("tensors", "record"),
    [(TENSORS[1:], RECORD), (TENSORS, replace(RECORD, profiles=RECORD.profiles[:1]))],
)
def test_a_plan_of_another_graph_is_refused(toy_artifact: Path, tensors: Any, record: Any) -> None:
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda(), tensors=tensors)
    with pytest.raises(ArtifactError, match="profiles, expected"):
        load(toy_artifact, api, record)


def test_what_the_log_says_is_in_the_error_and_in_ours(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda())

    def runtime(noted: Any) -> Any:
        def deserialize(_: object) -> None:
            noted.log(1, "cudaError 35: CUDA driver version is insufficient")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    api.module.Runtime = runtime
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(HardwareError, match=r"\[error\] cudaError 35"),
    ):
        load(toy_artifact, api)
    assert "cudaError 35" in caplog.text


def test_a_stripped_plan_takes_the_weights_of_the_graph(toy_artifact: Path) -> None:
    api, engine = host_api(toy_artifact / "model.onnx", HostCuda())
    given: list[Any] = []
    api.module.Refitter = lambda e, _logger: SimpleNamespace(refit_cuda_engine=lambda: e is engine)
    api.module.OnnxParserRefitter = lambda _r, _l: SimpleNamespace(
        refit_from_file=lambda path: given.append(path) or True
    )
    load(toy_artifact, api, replace(RECORD, options={"strip_weights": True}))
    assert given == [str(toy_artifact / "model.onnx")]
    for reads, refits in ((False, True), (True, False)):
        api.module.Refitter = lambda *_, refits=refits: SimpleNamespace(
            refit_cuda_engine=lambda: refits
        )
        api.module.OnnxParserRefitter = lambda *_, reads=reads: SimpleNamespace(
            refit_from_file=lambda _: reads
        )
        with pytest.raises(ArtifactError, match="did not take the weights of"):
            load(toy_artifact, api, replace(RECORD, options={"strip_weights": True}))


def test_a_plan_that_cannot_be_refitted_is_told(toy_artifact: Path) -> None:
    api, _ = host_api(toy_artifact / "model.onnx", HostCuda())

    def refuse(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    api.module.Refitter = refuse
    with pytest.raises(ArtifactError, match=r"cannot take the weights of .*model\.onnx"):
        load(toy_artifact, api, replace(RECORD, options={"strip_weights": True}))


@pytest.mark.parametrize("record", [RECORD, RTX])
def test_all_contexts_share_one_memory(toy_artifact: Path, record: EngineRecord) -> None:
    loaded, engine = host_engine(toy_artifact, HostCuda(), record)
    assert loaded.scratch_bytes == engine.device_memory_size_v2
    loaded.use_scratch(4096)
    for profile, records in ((0, False), (1, False), (0, True)):
        loaded.context(profile, stream=7, records=records)
    assert [context.scratch for context in engine.contexts] == [4096] * 3


def test_a_shape_outside_of_the_profile_is_refused(toy_artifact: Path) -> None:
    loaded, _ = host_engine(toy_artifact, HostCuda())
    context = loaded.context(0, stream=7)
    with pytest.raises(ArtifactError, match=r"did not take a batch of shape \(9, 9\)"):
        context.prepare(RECORD.profiles[0].max._replace(batch=9, sequence=9), {})


def test_a_runtime_cache_of_another_driver_begins_anew(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (toy_artifact / "engines").mkdir()
    (toy_artifact / "engines" / "host.runtime-cache").write_bytes(b"of another driver")
    with caplog.at_level(logging.INFO):
        loaded, _ = host_engine(toy_artifact, HostCuda(), RTX)
    assert "begins anew" in caplog.text
    loaded.save_cache()
    assert (toy_artifact / "engines" / "host.runtime-cache").read_bytes() == b"k"


def test_a_cache_that_cannot_be_kept_is_a_warning(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, _ = host_engine(toy_artifact, HostCuda(), RTX)
    (toy_artifact / "engines" / "host.runtime-cache").mkdir()
    with caplog.at_level(logging.WARNING):
        loaded.save_cache()
    assert "the runtime cache is not kept" in caplog.text
    assert [p.name for p in (toy_artifact / "engines").glob(".*")] == []


def test_a_cache_in_a_folder_that_is_read_only_is_a_warning(
    toy_artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _ = host_engine(toy_artifact, HostCuda(), RTX)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        loaded.save_cache()
    assert "Read-only file system" in caplog.text


def test_a_cache_that_gives_nothing_is_not_written(
    toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostCache, "serialize", lambda _: None)
    loaded, _ = host_engine(toy_artifact, HostCuda(), RTX)
    loaded.save_cache()
    assert not (toy_artifact / "engines" / "host.runtime-cache").exists()
