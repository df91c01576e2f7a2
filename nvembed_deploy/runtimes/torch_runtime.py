"""This file owns opening the packed model: an artifact's weights, or a checkpoint's.

No padding, the pooler's constants folded; on a GPU with variable-length attention, on request with
FP8 products or compiled kernels. It needs torch and nothing else.
"""

from __future__ import annotations

import torch

from nvembed_deploy.artifact import Artifact
from nvembed_deploy.checkpoint import Checkpoint
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.reader import (
    CodesReader,
    Reader,
    artifact_reader,
    checkpoint_reader,
    codes_reader,
    no_codes,
    uncomputed,
)
from nvembed_deploy.model.weights import open_weights
from nvembed_deploy.runtimes.packed_runtime import PackedRuntime
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.runtimes.torch_device import check_fp8, torch_device, torch_dtype
from nvembed_deploy.spec import ModelSpec, Precision
from nvembed_deploy.tensorfile import TensorEntry, open_tensors


def open_runtime(artifact: Artifact, options: RuntimeOptions) -> PackedRuntime:
    """Load an artifact's weight file: floats, and linears in FP8 with a range per token.

    Raises:
        ArtifactError: it is quantised in another way, or lacks a tensor of the model.
        HardwareError: the device asked for is not there, or has no FP8 products.
    """
    manifest, entries = artifact.manifest, open_tensors(artifact.weights)
    if manifest.is_quantized:
        _check_quantized(artifact, entries, options)
    reader = artifact_reader(manifest.spec, entries, artifact.weights)
    return _open(reader, manifest.spec, manifest.precision, options, codes_reader(entries))


def _check_quantized(
    artifact: Artifact, entries: dict[str, TensorEntry], options: RuntimeOptions
) -> None:
    name = uncomputed(entries)
    if name is not None or artifact.manifest.recipe.get("activations") == "float":
        why = f"it has {name}" if name is not None else "its inputs are not rounded"
        raise ArtifactError(
            f"{artifact.path} is quantised in a way that the torch runtime does not compute: {why}",
            'use runtime="onnx", or load the checkpoint itself with runtime="torch"',
        )
    check_fp8(torch_device(options), f"{artifact.path} has FP8 linears", 'use runtime="onnx"')


def open_checkpoint_runtime(checkpoint: Checkpoint, options: RuntimeOptions) -> PackedRuntime:
    """Load a checkpoint, adapter merged, pooler folded.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        HardwareError: the device asked for is not there.
    """
    weights = open_weights(checkpoint)
    return _open(checkpoint_reader(weights), weights.spec, Precision.BF16, options)


def _open(
    read: Reader,
    spec: ModelSpec,
    stored: Precision,
    options: RuntimeOptions,
    codes: CodesReader = no_codes,
) -> PackedRuntime:
    device = torch_device(options)
    if options.fp8:
        check_fp8(device, "fp8=True was given", "leave it out")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    kernels = Kernels.compiled() if options.compiles else Kernels()
    dtype = torch_dtype(options, stored, device)
    loader = Loader(read, dtype, device, kernels, options.fp8, codes)
    return PackedRuntime.load(spec, loader, options.cuda_graphs)
