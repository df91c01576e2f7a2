"""Tests of nvembed_deploy/parity/side.py: what a checkpoint computes in, and its cache's name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import pytest
import torch

from nvembed_deploy.errors import HardwareError, InputError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.parity import side as side_module
from nvembed_deploy.parity.side import Side, check_dtype, model_key, open_subject
from nvembed_deploy.runtimes import load_encoder
from nvembed_deploy.spec import Precision
from tests import factories


def key_of(path: Path, dtype: Precision = Precision.FP32) -> str:
    side = Side(path, device="cpu", reference_dtype=dtype)
    with load_encoder(path, side.opened_by, device="cpu") as encoder:
        return model_key(side, encoder)


def dtype_of(side: Side, folder: Path) -> torch.dtype:
    """Return what the weights of an opened side are in."""
    with ExitStack() as stack:
        subject = open_subject("m", side, folder, stack)
        model = subject.encoder.runtime._model
        return next(model.parameters()).dtype


@pytest.fixture
def assembled(tmp_path: Path, tiny_pooler: Path) -> Path:
    """A checkpoint beside its base, which can be changed."""
    base = factories.write_base(tmp_path / "base")
    parts = Parts(base, pooler=tiny_pooler, pooler_spec=factories.TINY.pooler, name="tiny")
    assemble_checkpoint(parts, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_checkpoint_is_asked_for_in_float32_wherever_it_runs(
    tiny_assembled: Path, tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(path: Path, runtime: str, **options: object) -> object:
        asked.append((runtime, options["options"].dtype, options["options"].device))
        return load_encoder(path, runtime, device="cpu")

    monkeypatch.setattr(side_module, "load_encoder", load)
    with ExitStack() as stack:
        open_subject("m", Side(tiny_assembled, runtime, "cuda:0"), tmp_path, stack)
    assert asked == [("reference", Precision.FP32, "cuda:0")]


@pytest.mark.parametrize(
    ("asked", "found"), [(Precision.FP32, torch.float32), (Precision.BF16, torch.bfloat16)]
)
def test_the_reference_computes_in_what_was_asked_for(
    tiny_assembled: Path, tmp_path: Path, asked: Precision, found: torch.dtype
) -> None:
    side = Side(tiny_assembled, device="cpu", reference_dtype=asked)
    assert dtype_of(side, tmp_path) is found


@pytest.mark.parametrize("runtime", ["auto", "torch", "onnx"])
def test_an_artifact_and_a_named_runtime_have_formats_of_their_own(
    tiny_artifact: Path, tiny_assembled: Path, runtime: str
) -> None:
    assert Side(tiny_artifact, runtime, reference_dtype=Precision.BF16).dtype is None
    assert Side(tiny_assembled, "torch", reference_dtype=Precision.BF16).dtype is None


def test_a_format_for_nothing_is_refused(tiny_artifact: Path, tiny_assembled: Path) -> None:
    sides = [Side(path, reference_dtype=Precision.BF16) for path in (tiny_artifact, tiny_assembled)]
    check_dtype(sides)
    check_dtype([Side(tiny_artifact)])
    with pytest.raises(InputError, match="--reference-dtype bf16 was given, and nothing here runs"):
        check_dtype(sides[:1])


def test_a_checkpoint_too_large_for_the_gpu_is_told_of_the_smaller_format(
    tiny_assembled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224 MiB.")

    monkeypatch.setattr(side_module, "load_encoder", full)
    with ExitStack() as stack, pytest.raises(HardwareError, match="in fp32 does not fit") as caught:
        open_subject("m", Side(tiny_assembled), tmp_path, stack)
    assert "--reference-dtype bf16" in caught.value.fix


def test_the_key_stays_while_nothing_changes(assembled: Path, tmp_path: Path) -> None:
    first = key_of(assembled)
    assert first.startswith("checkpoint-")
    assert key_of(assembled) == first
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("base", "checkpoint"):
        shutil.move(tmp_path / name, moved / name)
    assert key_of(moved / "checkpoint") == first


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def change_epsilon(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights of the base": lambda folder: touch(next((folder / "base").glob("*.safetensors"))),
    "the base's config": lambda folder: change_epsilon(folder / "base"),
    "the pooler": lambda folder: touch(next((folder / "checkpoint").glob("*.safetensors"))),
    "the description": lambda folder: (folder / "checkpoint" / "checkpoint.json").write_text(
        (folder / "checkpoint" / "checkpoint.json").read_text() + "\n"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_key_changes_with_each_file_of_a_checkpoint(
    assembled: Path, tmp_path: Path, what: str
) -> None:
    first = key_of(assembled)
    CHANGES[what](tmp_path)
    assert key_of(assembled) != first


def test_the_key_changes_with_the_number_format(assembled: Path) -> None:
    assert len({key_of(assembled, dtype) for dtype in Precision}) == 3


@pytest.mark.parametrize(
    "package",
    ["onnxruntime", "onnxruntime-gpu", "torch", "transformers", "tensorrt", "tensorrt-rtx-cu13"],
)
def test_the_key_changes_with_the_version_of_what_computes(
    tiny_artifact: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, version = key_of(tiny_artifact), metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "99.9" if n == package else version(n))
    assert key_of(tiny_artifact) != first


def test_the_key_changes_with_our_own_version(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = key_of(tiny_artifact)
    monkeypatch.setattr("nvembed_deploy.__version__", "99.9")
    assert key_of(tiny_artifact) != first
