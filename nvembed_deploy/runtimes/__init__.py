"""This file owns `load_encoder` and the table of runtimes.

Each runtime is imported when it is asked for: a host that serves ONNX needs no torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import Artifact, Verify, is_artifact, open_artifact
from nvembed_deploy.checkpoint import Checkpoint, open_checkpoint, write_tokenizer
from nvembed_deploy.errors import ArtifactError, InputError, MissingPackageError
from nvembed_deploy.runtimes.batching import BatchLimits
from nvembed_deploy.runtimes.cpu_quota import quota_threads
from nvembed_deploy.runtimes.encoder import Encoder
from nvembed_deploy.runtimes.parallel_runtime import ParallelRuntime
from nvembed_deploy.runtimes.protocol import Runtime, RuntimeOptions
from nvembed_deploy.text import Tokenizer

__all__ = ["RUNTIMES", "Encoder", "Runtime", "RuntimeOptions", "load_encoder"]

RUNTIMES = {
    "onnx": "nvembed_deploy.runtimes.onnx_runtime:open_runtime",
    "torch": "nvembed_deploy.runtimes.torch_runtime:open_runtime",
    "reference": "nvembed_deploy.runtimes.reference_runtime:open_reference",
    "tensorrt": "nvembed_deploy.runtimes.tensorrt_runtime:open_tensorrt",
    "tensorrt-rtx": "nvembed_deploy.runtimes.tensorrt_runtime:open_rtx",
}
_OF_CHECKPOINTS = {
    "torch": "nvembed_deploy.runtimes.torch_runtime:open_checkpoint_runtime",
    "reference": RUNTIMES["reference"],
}
_CHECKPOINT_FILES = ("checkpoint.json", "config.json")
_PACKAGES = {
    "onnx": "onnxruntime",
    "torch": "torch",
    "reference": "transformers",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
_AUTO = ("onnx", "torch")
"""What "auto" takes where no engine of the artifact fits this machine."""


def load_encoder(  # noqa: PLR0913 - the front door: each option is a keyword
    path: str | Path,
    runtime: str = "auto",
    *,
    device: str | None = None,
    options: RuntimeOptions | None = None,
    verify: Verify = "fast",
    require_parity: bool = False,
) -> Encoder:
    """Open an artifact, or a checkpoint with torch, for encoding.

    Args:
        path: an artifact folder, or a checkpoint folder.
        runtime: a name in `RUNTIMES`, or "auto": the TensorRT that runs an engine of the artifact
            on this machine's GPU; else onnx where onnxruntime is installed; else torch. Torch for
            a checkpoint. "reference" runs a checkpoint as it was trained, padded and slower: what
            others are compared with.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU where there is one. Several share the
            work: "cuda:0,cuda:1".
        options: threads, memory and more.
        verify: "full" also reads the weights and compares their sha256.
        require_parity: refuse what the parity suite has not passed.

    Raises:
        InputError: the runtime's name is not known.
        ArtifactError: the folder is neither, is damaged, or has no passing parity verdict.
        MissingPackageError: the runtime's package is not installed.
        HardwareError: the device asked for by name cannot be used.
    """
    path = Path(path)
    if runtime not in (*RUNTIMES, "auto"):
        raise InputError(
            f"runtime is {runtime!r}, expected one of {', '.join(['auto', *RUNTIMES])}",
            "leave it out to take what is installed",
        )
    options = options or RuntimeOptions()
    options = options if device is None else replace(options, device=device)
    if options.threads is None:
        options = replace(options, threads=quota_threads())
    devices = (options.device or "").split(",")
    if len(devices) > 1:
        again = partial(load_encoder, path, runtime, verify=verify, require_parity=require_parity)
        each = [replace(options, device=device.strip()) for device in devices]
        return _in_parallel([partial(again, options=one) for one in each])
    if not is_artifact(path):
        return _open_checkpoint(path, runtime, options, require_parity=require_parity)
    artifact = open_artifact(path, verify)
    if require_parity:
        _check_parity(artifact)
    open_runtime = _import(RUNTIMES[_choose(runtime, artifact, options)])
    spec = artifact.manifest.spec
    tokenizer = Tokenizer.load(artifact.tokenizer, spec.text, spec.backbone.vocab_size)
    opened: Runtime = open_runtime(artifact, options)
    return Encoder(opened, tokenizer, spec=spec, limits=_limits(opened, options))


def _in_parallel(openers: list[Callable[[], Encoder]]) -> Encoder:
    """Open an encoder for each device and join them; if one cannot be opened, none stays open."""
    with ExitStack() as stack:
        encoders = [stack.enter_context(open_one()) for open_one in openers]
        stack.pop_all()
    first, runtime = encoders[0], ParallelRuntime([encoder.runtime for encoder in encoders])
    return Encoder(runtime, first.tokenizer, spec=first.spec, limits=first.limits)


def _open_checkpoint(
    path: Path, runtime: str, options: RuntimeOptions, *, require_parity: bool
) -> Encoder:
    """Open a checkpoint folder with torch."""
    if not any((path / name).is_file() for name in _CHECKPOINT_FILES):
        raise ArtifactError(
            f"{path} is neither an artifact (no manifest.json) nor a checkpoint (no "
            f"{' or '.join(_CHECKPOINT_FILES)})",
            "give a folder that the exporter wrote, or a checkpoint folder",
        )
    runtime = "torch" if runtime == "auto" else runtime
    if runtime not in _OF_CHECKPOINTS or require_parity:
        wish = "require_parity" if require_parity else f"the {runtime} runtime"
        raise ArtifactError(
            f"{path} is a checkpoint, and {wish} needs an artifact",
            f"export it: python -m nvembed_deploy.export {path} OUT",
        )
    _check_package("torch")
    _check_package(runtime)
    checkpoint = open_checkpoint(path)
    spec, tokenizer = checkpoint.spec, _tokenizer(checkpoint)
    opened: Runtime = _import(_OF_CHECKPOINTS[runtime])(checkpoint, options)
    return Encoder(opened, tokenizer, spec=spec, limits=_limits(opened, options))


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load a checkpoint's tokenizer; that of a GGUF file is written out for it first."""
    spec, path = checkpoint.spec, checkpoint.tokenizer
    if path.suffix != ".gguf":
        return Tokenizer.load(path, spec.text, spec.backbone.vocab_size)
    with tempfile.TemporaryDirectory(prefix="nvembed-tokenizer-") as folder:
        written = Path(folder) / "tokenizer.json"
        write_tokenizer(checkpoint, written)
        return Tokenizer.load(written, spec.text, spec.backbone.vocab_size)


def _choose(runtime: str, artifact: Artifact, options: RuntimeOptions) -> str:
    """Resolve "auto", and check that the runtime's package is there."""
    if runtime == "reference":
        raise ArtifactError(
            f"{artifact.path} is an artifact, and the reference runtime runs a checkpoint",
            'give the checkpoint folder, or use runtime="onnx" or "torch"',
        )
    if runtime != "auto":
        _check_package(runtime)
        return runtime
    from nvembed_deploy.runtimes.engine_here import flavour_here

    flavour = flavour_here(artifact, options)
    if flavour is not None:
        return flavour.value
    for name in _AUTO:
        if find_spec(_PACKAGES[name]):
            return name
    packages = ", ".join(_PACKAGES[name] for name in _AUTO)
    raise MissingPackageError(
        f"no runtime is installed: none of {packages} was found",
        "pip install 'nvembed-deploy[onnx]', [onnx-gpu] or [torch]",
    )


def _check_package(runtime: str) -> None:
    if find_spec(_PACKAGES[runtime]) is None:
        extra = "torch" if runtime == "reference" else runtime
        raise MissingPackageError(
            f"the {runtime} runtime needs {_PACKAGES[runtime]}, which is not installed",
            f"pip install 'nvembed-deploy[{extra}]'",
        )


def _check_parity(artifact: Artifact) -> None:
    if not artifact.manifest.has_passed_parity:
        found = "a failed verdict" if artifact.manifest.parity else "no verdict"
        raise ArtifactError(
            f"{artifact.path} has {found} of the parity suite, and require_parity was asked for",
            f"run it: nvembed-deploy parity {artifact.path} --reference CHECKPOINT",
        )


def _limits(runtime: Runtime, options: RuntimeOptions) -> BatchLimits:
    limits = BatchLimits.for_device(runtime.device, packs=runtime.packs)
    if options.max_batch_tokens is None:
        return limits
    return replace(limits, max_batch_tokens=options.max_batch_tokens)


def _import(place: str) -> Any:  # noqa: ANN401 - a function named by text
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
