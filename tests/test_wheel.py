"""What a user installs: the wheel's files and metadata, the extras and the pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SUITE = (ROOT / "nvembed_deploy" / "parity" / "suite").glob("*/*")
DATA = (
    "nvembed_deploy/py.typed",
    "nvembed_deploy/export/calibration.jsonl",
    "nvembed_deploy/parity/published.json",
    *(file.relative_to(ROOT).as_posix() for file in SUITE),
)
REQUIREMENTS = [PROJECT["dependencies"], *EXTRAS.values()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and the sdist, built offline from a copy of what is published."""
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", ".*", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=skipped, dirs_exist_ok=True)
    build = "from setuptools.build_meta import *; build_sdist('out'); build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    return source / "out"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The paths in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    archive = zipfile.ZipFile(wheel)
    path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(archive.read(path))


def test_it_holds_every_module_and_nothing_else(names: set[str]) -> None:
    package = ROOT / "nvembed_deploy"
    expected = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    assert {n for n in names if ".dist-info/" not in n} == expected | set(DATA)


def test_the_sdist_holds_no_half_of_the_tests(built: Path, names: set[str]) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held >= {name for name in names if name.startswith("nvembed_deploy/")}
    assert not {name for name in held if name.startswith("tests")}


def test_it_holds_the_license_and_the_notice(names: set[str]) -> None:
    held = {Path(name).name for name in names if "/licenses/" in name}
    assert held == {"LICENSE", "NOTICE"}


def test_its_metadata_is_what_an_index_shows(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Requires-Python"].count(",") == 1
    assert set(metadata.get_all("Provides-Extra", [])) == set(EXTRAS)


def test_it_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    show = f"import sys; sys.path.insert(0, {str(wheel)!r}); import nvembed_deploy.__main__ as m;"
    done = subprocess.run(
        [sys.executable, "-c", show + "print(m.__file__); m.main(['--version'])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    file, version = done.stdout.split()
    assert file.startswith(str(wheel))
    assert f"-{version}-" in wheel.name


def test_every_extra_that_a_message_names_exists() -> None:
    named = set()
    for path in (ROOT / "nvembed_deploy").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= {
            extra
            for m in re.findall(r"nvembed-deploy\[([a-z,-]+)\]", text)
            for extra in m.split(",")
        }
    assert named
    assert named <= set(EXTRAS)


@pytest.mark.parametrize(
    "requirement",
    sorted({text for group in REQUIREMENTS for text in group}),
)
def test_the_pin_of_every_dependency_is_within_its_range(requirement: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])
