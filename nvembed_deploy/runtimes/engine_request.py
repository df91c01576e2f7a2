"""This file owns finding the engine for this machine, and asking for one where there is none.

A compiler can crash and takes memory of its own, so that it runs as the command a user would run,
in another process. That command holds the artifact's lock: whoever asks second finds it done.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nvembed_deploy
from nvembed_deploy.artifact import Artifact, hash_file, open_artifact
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import ArtifactError, HardwareError
from nvembed_deploy.runtimes.engine_choice import Host, choose_engine, explain
from nvembed_deploy.runtimes.protocol import RuntimeOptions

_VISIBLE = "CUDA_VISIBLE_DEVICES"

logger = logging.getLogger(__name__)


def find_engine(
    artifact: Artifact, host: Host, options: RuntimeOptions, index: int
) -> tuple[Artifact, str]:
    """Return the artifact, as it then is, and the name of the engine to run.

    Raises:
        ArtifactError: none fits, and none may be compiled.
        HardwareError: the product does not run on this GPU, or cannot compile.
    """
    if not host.is_supported:
        raise HardwareError(
            f"{host.flavour} {host.version} does not run on {host.target}, only on "
            f"{', '.join(host.supported)}",
            "runtime='tensorrt' runs on data-centre GPUs too; or runtime='onnx'",
        )
    name = choose_engine(artifact.manifest.engines, host)
    if name is not None:
        return artifact, name
    problem = (
        f"{artifact.path} has no engine for {host}: {explain(artifact.manifest.engines, host)}"
    )
    if not options.compiles_engines:
        words = compile_command(artifact.path, host)[3:]
        raise ArtifactError(problem, f"nvembed-deploy {shlex.join(words)}")
    logger.warning("%s", problem)
    request_engine(artifact.path, host, index)
    artifact = open_artifact(artifact.path)
    name = choose_engine(artifact.manifest.engines, host)
    if name is None:
        raise ArtifactError(
            f"{artifact.path} has no engine for {host} after one was compiled: "
            f"{explain(artifact.manifest.engines, host)}",
            "check that the command and this process use one Python environment",
        )
    return artifact, name


@dataclass(frozen=True)
class Damage:
    """An engine that was not loaded, and why."""

    artifact: Artifact
    name: str
    error: ArtifactError

    @property
    def expected(self) -> str:
        """The sha256 that the manifest had."""
        return self.artifact.manifest.files[self.name].sha256

    def problem(self) -> str | None:
        """Say how the file differs from the manifest; None if it does not."""
        plan = self.artifact.path / self.name
        try:
            got = hash_file(plan)
        except FileNotFoundError:  # another process found the damage first
            return f"{plan} is gone"
        if got == self.expected:
            return None
        return f"{plan} is damaged: got sha256 {got}, expected {self.expected}"

    def is_there_still(self) -> bool:
        """Say whether nobody has compiled another meanwhile, which is not ours to remove."""
        known = open_artifact(self.artifact.path).manifest.files.get(self.name)
        return known is not None and known.sha256 == self.expected


def find_another(
    damage: Damage, host: Host, options: RuntimeOptions, index: int
) -> tuple[Artifact, str]:
    """Remove an engine whose file is not what the manifest says; then as `find_engine`.

    Raises:
        ArtifactError: the file is whole, so that another would be no better, or none may be
            compiled.
        HardwareError: it could not be compiled.
    """
    path, error = damage.artifact.path, damage.error
    problem = damage.problem()
    if problem is None:
        raise error
    if not options.compiles_engines:
        raise ArtifactError(f"{problem}; {error.problem}", error.fix) from error
    if damage.is_there_still():
        logger.warning("%s: it is removed", problem)
        try:
            (path / damage.name).unlink(missing_ok=True)
        except OSError as denied:
            raise ArtifactError(f"{problem}, and cannot be removed: {denied}", error.fix) from error
    return find_engine(open_artifact(path), host, options, index)


def request_engine(artifact: Path, host: Host, index: int) -> None:
    """Compile an artifact's graph for this machine into the artifact.

    Args:
        artifact: its folder.
        host: the GPU and the product.
        index: which of the visible GPUs that is.

    Raises:
        HardwareError: it could not be compiled; says why, and what to do.
    """
    words = compile_command(artifact, host)
    logger.warning("compiling an engine for %s, which takes minutes: %s", host, " ".join(words[1:]))
    package = str(Path(nvembed_deploy.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    seen = {_VISIBLE: visible_devices(index, os.environ), "PYTHONPATH": path}
    done = subprocess.run(words, env=os.environ | seen, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failure(done.stderr, done.returncode, words)
    for line in done.stdout.splitlines():
        logger.warning("%s", line)


def compile_command(artifact: Path, host: Host) -> list[str]:
    """Return the command that compiles for a machine."""
    target = ["--target", host.target] if host.flavour is Flavour.RTX else []
    flavour = host.flavour.value
    compiler = [sys.executable, "-m", "nvembed_deploy", "compile"]
    return [*compiler, str(artifact), "--engine", flavour, *target]


def visible_devices(index: int, environment: Mapping[str, str]) -> str:
    """Return the one GPU that the compiler may see, so that its first is our `index`-th."""
    visible = environment.get(_VISIBLE, "")
    return visible.split(",")[index].strip() if visible else str(index)


def _failure(printed: str, code: int, words: list[str]) -> HardwareError:
    """Pass on what the command said: two lines, `error:` and `fix:`."""
    lines = printed.strip().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines))
    said = "\n".join(lines[start:]).removeprefix("error: ")
    problem, _, fix = said.partition("\nfix: ")
    return HardwareError(
        problem or f"compiling the engine ended with exit code {code}: {' '.join(lines[-3:])}",
        fix or f"run it by hand: {' '.join(words[1:])}",
    )
