"""This file owns the trace: in which layer the two sides part.

Token states after each layer are compared by their Gram matrices (the products of all pairs of
tokens), which an orthogonal rotation of the residual stream leaves as they are, so that quantised
graphs can be traced too. Shapes: S tokens, D hidden.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.artifact import LAYOUT, open_artifact
from nvembed_deploy.errors import InputError, MissingPackageError
from nvembed_deploy.onnx_session import session_options
from nvembed_deploy.spec import Precision
from nvembed_deploy.text import Batch, Tokenizer, collate

_LAYER = re.compile(r"layers\.(\d+)\.")
_TEXT = "Saturn is the planet best known for its rings, which are made of ice, dust and rock."
_TASK = "Given a question, retrieve passages that answer the question"
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "fp8": 3e-1, "int8": 3e-1, "int4": 3e-1}
"""Relative difference of Gram matrices that rounding alone may give."""
_OF_ARTIFACTS = {"onnx": "parity", "onnxruntime": "onnx"}
_OF_CHECKPOINTS = {"torch": "torch", "transformers": "torch"}
"""What computes the states, and the extra that brings it."""
States = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Trace:
    """How far apart the sides are after each layer, and the first that is too far."""

    drift: list[float]
    tolerance: float
    first: int | None

    def lines(self) -> list[str]:
        """Return a line for each layer."""
        marks = {self.first: "  <- the first beyond tolerance"}
        return [
            f"layer {layer:>3}  {drift:.1e}{marks.get(layer, '')}"
            for layer, drift in enumerate(self.drift)
        ]


def trace(candidate: Path, reference: Path, precision: str) -> Trace:
    """Compare both sides' states after each layer on one text with an instruction.

    Raises:
        InputError: the two do not have the same layers, or one cannot be traced.
        MissingPackageError: a package is not installed.
    """
    for path in (candidate, reference):
        check_traceable(path)
    ours, theirs = (layer_states(path) for path in (candidate, reference))
    if len(ours) != len(theirs):
        raise InputError(
            f"{candidate} has {len(ours)} layers, {reference} {len(theirs)}",
            "compare an artifact with the checkpoint it was exported from",
        )
    tolerance = TOLERANCES[precision]
    drift = [_gram_difference(a, b) for a, b in map(_shared, ours, theirs)]
    first = next((layer for layer, found in enumerate(drift) if found > tolerance), None)
    return Trace(drift, tolerance, first)


def check_traceable(path: Path) -> None:
    """Refuse what cannot be traced here, before anything is computed.

    Raises:
        InputError: an artifact in a number format that the processor does not compute.
        MissingPackageError: what computes the states is not installed.
    """
    is_artifact = (path / LAYOUT.manifest).exists()
    for package, extra in (_OF_ARTIFACTS if is_artifact else _OF_CHECKPOINTS).items():
        if find_spec(package) is None:
            raise MissingPackageError(
                f"--trace of {path} needs {package}, which is not installed",
                f"pip install 'nvembed-deploy[{extra}]'",
            )
    if is_artifact and open_artifact(path).manifest.precision is Precision.BF16:
        raise InputError(
            f"{path} is bf16: --trace computes an artifact on the processor, where ONNX Runtime "
            "has no kernels for it",
            "leave --trace out, or trace an export of the same checkpoint with --precision fp32 or "
            "fp16",
        )


def layer_states(path: Path) -> States:
    """Return the states after each layer of an artifact (ONNX Runtime) or a checkpoint (torch)."""
    if (path / LAYOUT.manifest).exists():
        return _artifact_states(path)
    return _checkpoint_states(path)


def _artifact_states(path: Path) -> States:
    import onnx
    import onnxruntime

    artifact = open_artifact(path)
    spec = artifact.manifest.spec
    batch = _batch(Tokenizer.load(artifact.path / LAYOUT.tokenizer, spec.text))
    model = onnx.load(str(path / LAYOUT.graph), load_external_data=False)
    names = _residuals(model.graph)
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory(dir=_writable(path)) as folder:
        onnx.save(model, str(Path(folder) / LAYOUT.graph))
        _link(path / LAYOUT.weights, Path(folder) / LAYOUT.weights)
        session = onnxruntime.InferenceSession(
            str(Path(folder) / LAYOUT.graph),
            session_options(is_for_cpu=artifact.manifest.is_for_cpu),
            ["CPUExecutionProvider"],
        )
        inputs = {i.name: getattr(batch, f"{i.name}_BS") for i in session.get_inputs()}
        states = session.run(names, inputs)
        del session
    return [state[0].astype(np.float32) for state in states]


def _residuals(graph: Any) -> list[str]:  # noqa: ANN401 - onnx.GraphProto
    """Return the name of the residual stream after each layer: the last sum of its nodes."""
    last: dict[int, str] = {}
    for node in graph.node:
        found = _LAYER.match(node.name)
        if found and node.op_type == "Add":
            last[int(found[1])] = node.output[0]
    return [last[layer] for layer in sorted(last)]


def _writable(path: Path) -> Path | None:
    """Return the artifact's parent, where weights can be linked, if it can be written to."""
    return path.resolve().parent if os.access(path.resolve().parent, os.W_OK) else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _checkpoint_states(path: Path) -> States:
    import torch

    from nvembed_deploy.checkpoint import open_checkpoint, write_tokenizer
    from nvembed_deploy.model.nvembed import load_model
    from nvembed_deploy.model.weights import open_weights

    checkpoint = open_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint, Path(folder) / LAYOUT.tokenizer)
        batch = _batch(Tokenizer.load(Path(folder) / LAYOUT.tokenizer, checkpoint.spec.text))
    model = load_model(open_weights(checkpoint))
    states: States = []

    def keep(_: object, __: object, output: Any) -> None:  # noqa: ANN401 - transformers' own
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden[0].float().numpy())

    for layer in model.backbone.decoder.layers:
        layer.register_forward_hook(keep)
    with torch.inference_mode():
        model(
            *(
                torch.from_numpy(x)
                for x in (batch.input_ids_BS, batch.attention_mask_BS, batch.pool_mask_BS)
            )
        )
    return states


def _batch(tokenizer: Tokenizer) -> Batch:
    return collate(tokenizer.tokenize([_TEXT], _TASK), tokenizer.spec.pad_id)


def _shared(
    one_SD: NDArray[np.float32], other_SD: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the tokens that both have: a graph may compute its last layer for the pooled alone.

    They are a text's last.
    """
    count = min(len(one_SD), len(other_SD))
    return one_SD[-count:], other_SD[-count:]


def _gram_difference(one_SD: NDArray[np.float32], other_SD: NDArray[np.float32]) -> float:
    one_SS, other_SS = (x.astype(np.float64) @ x.astype(np.float64).T for x in (one_SD, other_SD))
    return float(np.linalg.norm(one_SS - other_SS) / np.linalg.norm(other_SS))
