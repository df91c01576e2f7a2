"""This file owns whether this machine can run an engine that an artifact holds, now.

It decides what `runtime="auto"` takes: nothing is compiled and nothing is loaded for it, and a
machine without a GPU, or an artifact without an engine, costs no import.
"""

from __future__ import annotations

from importlib.util import find_spec

from nvembed_deploy.artifact import Artifact
from nvembed_deploy.engine_record import Flavour
from nvembed_deploy.errors import NVEmbedError
from nvembed_deploy.runtimes.cuda_memory import Gpu, gpu_index
from nvembed_deploy.runtimes.engine_choice import Host, choose_engine
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.tensorrt_api import MODULES, load_api


def flavour_here(artifact: Artifact, options: RuntimeOptions) -> Flavour | None:
    """Return the flavour that runs one of the artifact's engines here, or None."""
    engines = artifact.manifest.engines
    kind = (options.device or "cuda").partition(":")[0]
    if not engines or kind != "cuda" or options.providers or not _has_bindings():
        return None
    gpu = _gpu(options)
    if gpu is None:
        return None
    flavours = [f for f in Flavour if f in {record.flavour for record in engines.values()}]
    hosts = (_host(flavour, *gpu) for flavour in flavours if find_spec(MODULES[flavour]))
    fitting = (host.flavour for host in hosts if host and choose_engine(engines, host))
    return next(fitting, None)


def _gpu(options: RuntimeOptions) -> tuple[str, str] | None:
    """Return target and name of the GPU that was asked for; None where it cannot be used."""
    try:
        gpu = Gpu(gpu_index(options.device))
    except NVEmbedError:
        return None
    try:
        return gpu.target, gpu.name
    finally:
        gpu.close()


def _has_bindings() -> bool:
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def _host(flavour: Flavour, target: str, name: str) -> Host | None:
    """Return what is installed of a flavour; None where that cannot be loaded or run."""
    try:
        api = load_api(flavour)
    except NVEmbedError:
        return None
    host = Host(flavour, api.version, target, api.targets, name)
    return host if host.is_supported else None
