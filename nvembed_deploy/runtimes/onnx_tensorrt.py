"""This file owns how ONNX Runtime's two TensorRT providers are asked to run an artifact.

No precision is asked for: the graph's types are its precision. The provider builds a strongly typed
network only where no such option is set, and opset 23's Attention needs one. Each provider gets one
optimisation profile: the TensorRT provider runs every batch with its first (onnxruntime pull
request 31624). The runtimes of our own, `tensorrt_runtime.py`, use several.
"""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvembed_deploy.artifact import LAYOUT, Artifact
from nvembed_deploy.engine_record import Flavour, Profile, Shape
from nvembed_deploy.errors import HardwareError, InputError, MissingPackageError, NVEmbedError
from nvembed_deploy.runtimes.protocol import INPUTS
from nvembed_deploy.tensorrt_api import load_api

RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_MOST_TOKENS, _TYPICAL = 32768, 128
"""Padded tokens of the largest batch: what activations of some gigabytes hold at NV-Embed's size.
And the length that the provider tunes for."""
_SHORTEST = 2

TENSORRT_FIX = (
    "the provider of onnxruntime-gpu 1.31 wants TensorRT 10, in an environment without 11: "
    "pip install 'tensorrt-cu13>=10.15,<11'; or runtime='tensorrt', which takes both"
)

logger = logging.getLogger(__name__)


def profile_of(artifact: Artifact) -> Profile:
    """Return the one profile: every length that the model takes, as many texts as memory holds."""
    spec = artifact.manifest.spec
    longest = min(spec.text.max_tokens, spec.backbone.max_positions)
    texts = max(1, _MOST_TOKENS // longest)
    typical = Shape(min(8, texts), min(_TYPICAL, longest))
    return Profile("all", Shape(1, min(_SHORTEST, longest)), typical, Shape(texts, longest))


def tensorrt_options(artifact: Artifact, context_file: str | None = None) -> dict[str, str]:
    """Return options of the TensorRT provider: shapes, and where its engines are kept.

    With a context file the engine lies beside that, or the provider refuses; else in the artifact.

    Source: onnxruntime.ai, "TensorRT Execution Provider", configurations; its Python binding takes
    True and False alone.
    """
    options = _shapes("trt", profile_of(artifact))
    cache = _cache_folder(artifact)
    if cache is not None:
        options |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(cache)}
    if context_file is None:
        kept = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache)}
        return options | kept if cache is not None else options
    if not Path(context_file).is_file():
        options |= {
            "trt_dump_ep_context_model": "True",
            "trt_ep_context_file_path": context_file,
            "trt_ep_context_embed_mode": "0",
        }
    return options


def load_gpu_libraries(*, tensorrt: bool) -> None:
    """Load what Python packages hold of CUDA, where the providers' own loader does not look.

    pip installs libraries outside of every search path; once loaded they are found by their names.
    The TensorRT provider of onnxruntime-gpu 1.31.1 is linked to libnvinfer.so.10.
    """
    import onnxruntime as ort

    said = io.StringIO()
    with redirect_stdout(said):  # it prints what is missing, where results may be printed
        ort.preload_dlls()
    for line in filter(None, said.getvalue().splitlines()):
        logger.info("%s", line)
    if tensorrt:
        with suppress(NVEmbedError):
            load_api(Flavour.TENSORRT)


def rtx_options(artifact: Artifact) -> dict[str, str]:
    """Return options of the provider of TensorRT for RTX.

    Source: tensorrt_rtx_provider_options.h of onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0.
    """
    options = _shapes("nv", profile_of(artifact))
    cache = _cache_folder(artifact)
    return options if cache is None else options | {"nv_runtime_cache_path": str(cache)}


def graph_and_context(
    artifact: Artifact, kind: str, context_file: str | None
) -> tuple[Path, dict[str, str]]:
    """Return the file to load, and the session's settings that write an EPContext model.

    Args:
        artifact: what to run.
        kind: the device's kind.
        context_file: read if it is there, else written.

    Raises:
        InputError: the device compiles nothing.

    Source: onnxruntime.ai, "EPContext Design". The TensorRT provider has options of its own for it.
    """
    if context_file is None:
        return artifact.graph, {}
    if not kind.startswith("tensorrt"):
        raise InputError(
            f"context_file is given, and device {kind!r} compiles no engine to keep in it",
            "device='tensorrt' or 'tensorrt-rtx', or leave context_file out",
        )
    if Path(context_file).is_file():
        return Path(context_file), {}
    if kind == "tensorrt":
        return artifact.graph, {}
    settings = {"enable": "1", "file_path": context_file, "embed_mode": "0"}
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
