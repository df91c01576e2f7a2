"""This file owns how ONNX Runtime's two TensorRT providers are asked to run an artifact.

No precision is asked for: the graph's types are its precision. The provider builds a strongly typed
network only where no such option is set, and opset 23's Attention needs one. Each provider gets one
optimisation profile: the TensorRT provider runs every batch with its first (onnxruntime pull
request 31624). The runtimes of our own, `tensorrt_runtime.py`, use several.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import LAYOUT, Artifact
from nvembed_deploy.engine_record import Profile, Shape
from nvembed_deploy.errors import HardwareError, InputError, MissingPackageError
from nvembed_deploy.runtimes.protocol import INPUTS, RuntimeOptions

RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_MOST_TOKENS, _TYPICAL = 32768, 128
"""Padded tokens of the largest batch: what activations of some gigabytes hold at NV-Embed's size.
And the length that the provider tunes for."""
_SHORTEST = 2

logger = logging.getLogger(__name__)


def profile_of(artifact: Artifact) -> Profile:
    """Return the one profile: every length that the model takes, as many texts as memory holds."""
    spec = artifact.manifest.spec
    longest = min(spec.text.max_tokens, spec.backbone.max_positions)
    texts = max(1, _MOST_TOKENS // longest)
    typical = Shape(min(8, texts), min(_TYPICAL, longest))
    return Profile("all", Shape(1, min(_SHORTEST, longest)), typical, Shape(texts, longest))


def tensorrt_options(artifact: Artifact) -> dict[str, str]:
    """Return options of the TensorRT provider: shapes, and a cache of engines in the artifact.

    Source: onnxruntime.ai, "TensorRT Execution Provider", configurations.
    """
    options = _shapes("trt", profile_of(artifact))
    cache = _cache_folder(artifact)
    if cache is not None:
        for kind in ("engine", "timing"):
            options |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(cache)}
    return options


def rtx_options(artifact: Artifact) -> dict[str, str]:
    """Return options of the provider of TensorRT for RTX.

    Source: tensorrt_rtx_provider_options.h of onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0.
    """
    options = _shapes("nv", profile_of(artifact))
    cache = _cache_folder(artifact)
    return options if cache is None else options | {"nv_runtime_cache_path": str(cache)}


def graph_and_context(
    artifact: Artifact, kind: str, options: RuntimeOptions
) -> tuple[Path, dict[str, str]]:
    """Return the file to load, and the session's settings that write an EPContext model.

    Args:
        artifact: what to run.
        kind: the device's kind.
        options: whose `context_file` is read if it is there, else written.

    Raises:
        InputError: the device compiles nothing.

    Source: onnxruntime.ai, "EPContext Design".
    """
    if options.context_file is None:
        return artifact.graph, {}
    if not kind.startswith("tensorrt"):
        raise InputError(
            f"context_file is given, and device {kind!r} compiles no engine to keep in it",
            "device='tensorrt' or 'tensorrt-rtx', or leave context_file out",
        )
    path = Path(options.context_file)
    if path.is_file():
        return path, {}
    settings = {"enable": "1", "file_path": str(path), "embed_mode": "0"}
    return artifact.graph, {f"ep.context_{key}": value for key, value in settings.items()}


def rtx_device(index: int) -> Any:  # noqa: ANN401 - ONNX Runtime's class
    """Return the GPU as the provider of TensorRT for RTX knows it; it is a plugin, loaded here.

    Raises:
        HardwareError: it cannot be loaded, or does not know this GPU.
        MissingPackageError: it is not installed.
    """
    check_plugin()
    import onnxruntime as ort

    plugin = import_module(_PLUGIN)
    devices = _devices(plugin.get_ep_name())
    if not devices:
        try:
            ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise HardwareError(
                f"{RTX_PROVIDER} cannot be loaded: {error}",
                "install an NVIDIA driver for CUDA 13; or device='cuda' or 'cpu'",
            ) from error
        devices = _devices(plugin.get_ep_name())
    if index >= len(devices):
        raise HardwareError(
            f"{RTX_PROVIDER} knows {len(devices)} GPUs of this machine, cuda:{index} is none",
            "it runs on RTX GPUs from Ampere on; for H100 and H200, device='tensorrt'",
        )
    return devices[index]


def check_plugin() -> None:
    """Miss the plugin before the driver: it is the first thing to install.

    Raises:
        MissingPackageError: it is not installed.
    """
    if find_spec(_PLUGIN) is None:
        raise MissingPackageError(
            f"device 'tensorrt-rtx' needs {_PLUGIN}, which is not installed",
            "pip install 'nvembed-deploy[onnx-tensorrt-rtx]'",
        )


def _devices(provider: str) -> list[Any]:
    import onnxruntime as ort

    return [device for device in ort.get_ep_devices() if device.ep_name == provider]


def _shapes(prefix: str, profile: Profile) -> dict[str, str]:
    """Return the profile as both providers write it: input_ids:1x2,attention_mask:1x2,..."""
    return {
        f"{prefix}_profile_{bound}_shapes": ",".join(
            f"{name}:{shape.batch}x{shape.sequence}" for name in INPUTS
        )
        for bound, shape in (("min", profile.min), ("opt", profile.opt), ("max", profile.max))
    }


def _cache_folder(artifact: Artifact) -> Path | None:
    """Return a folder in the artifact, or None where it cannot be written."""
    folder = artifact.path / LAYOUT.engines / "onnxruntime"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("engines are compiled anew at each start: %s", error)
        return None
    return folder
