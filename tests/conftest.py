"""This file owns the fixtures shared by all tests: tiny checkpoints and artifacts, made once."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import factories

if TYPE_CHECKING:
    from nvembed_deploy.model.weights import Weights

TIERS = ("e2e", "real", "gpu")


def pytest_configure() -> None:
    """Take Ctrl-C where a shell that runs the tests in the background has it ignored.

    What is ignored stays so in children, and tests send it to theirs.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the tier folder it lives in, so that no file can forget its marker."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in TIERS:
            item.add_marker(folder)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: what gzip writes holds the time, and workers compare names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the released layout (float16, two shards)."""
    return factories.write_released(tmp_path_factory.mktemp("released") / "tiny")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny plain Mistral folder (float32)."""
    return factories.write_base(tmp_path_factory.mktemp("base") / "tiny-base")


@pytest.fixture(scope="session")
def tiny_pooler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pooler as a file (float32)."""
    return factories.write_pooler(tmp_path_factory.mktemp("pooler") / "pooler.safetensors")


@pytest.fixture(scope="session")
def tiny_assembled(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_pooler: Path
) -> Path:
    """Base and pooler as an assembled checkpoint (float32, no adapter)."""
    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint

    out = tmp_path_factory.mktemp("assembled") / "tiny"
    parts = Parts(tiny_base, pooler=tiny_pooler, pooler_spec=factories.TINY.pooler, name="tiny")
    assemble_checkpoint(parts, out)
    return out


@pytest.fixture(scope="session")
def tiny_weights(tiny_assembled: Path) -> Weights:
    """The assembled checkpoint's tensors (float32)."""
    from nvembed_deploy.checkpoint import open_checkpoint
    from nvembed_deploy.model.weights import open_weights

    return open_weights(open_checkpoint(tiny_assembled))


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory, tiny_assembled: Path) -> Path:
    """The assembled checkpoint exported in float32 by the real exporter."""
    from nvembed_deploy.export.pipeline import run_export
    from nvembed_deploy.export.plan import plan_export
    from nvembed_deploy.export.recipe import ExportRecipe
    from nvembed_deploy.spec import Precision

    out = tmp_path_factory.mktemp("artifact") / "tiny"
    run_export(plan_export(tiny_assembled, ExportRecipe(precision=Precision.FP32)), out)
    return out


@pytest.fixture(scope="session")
def compiled_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact with a real plan of TensorRT for RTX, for SM89."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'nvembed-deploy[tensorrt-rtx]'")
    from nvembed_deploy.__main__ import main

    folder = tmp_path_factory.mktemp("compiled")
    checkpoint = factories.write_released(folder / "checkpoint", factories.FUSABLE)
    argv = ["export", str(checkpoint), str(folder / "artifact"), "--engine", "tensorrt-rtx"]
    assert main([*argv, "--target", "sm89"]) == 0
    return folder / "artifact"


@pytest.fixture
def rtx_artifact(compiled_artifact: Path, tmp_path: Path) -> Path:
    """A copy of that artifact, to be changed."""
    return Path(shutil.copytree(compiled_artifact, tmp_path / "rtx"))
