"""This file owns what competitors load: the checkpoint's weights as one safetensors file.

Adapter merged, pooler faithful, float32, the tokenizer and the sizes beside it: what a user of
those libraries has on disk, so that their load time is not the time of our checkpoint reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nvembed_deploy.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from nvembed_deploy.model.nvembed import NVEmbed

WEIGHTS, SPEC, TOKENIZER, TRACED = "model.safetensors", "spec.json", "tokenizer.json", "traced.onnx"
_TRACE_SHAPE = 2, 16


def prepare(checkpoint: Path, folder: Path, *, is_traced: bool = False) -> None:
    """Write the files into `folder`; with `is_traced` torch.onnx.export's graph too."""
    from safetensors.torch import save_model

    from nvembed_deploy.checkpoint import open_checkpoint, write_tokenizer
    from nvembed_deploy.model.nvembed import load_model
    from nvembed_deploy.model.weights import open_weights

    opened = open_checkpoint(checkpoint)
    model = load_model(open_weights(opened))
    save_model(model, str(folder / WEIGHTS))
    (folder / SPEC).write_text(json.dumps(opened.spec.to_dict()), encoding="utf-8")
    write_tokenizer(opened, folder / TOKENIZER)
    if is_traced:
        trace(model, folder / TRACED)


def read_spec(folder: Path) -> ModelSpec:
    """Read the sizes and text rules."""
    return ModelSpec.from_dict(json.loads((folder / SPEC).read_text(encoding="utf-8")))


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> NVEmbed:
    """Load the model as its library would: of what needs no conversion the mapped file is used.

    transformers does so. Either way the device holds one copy of the weights.
    """
    import torch
    from safetensors.torch import load_file

    from nvembed_deploy.model.nvembed import build_model

    model = build_model(read_spec(folder), dtype=dtype, device=device)
    is_mapped = dtype == torch.float32 and device.type == "cpu"
    model.load_state_dict(load_file(folder / WEIGHTS), assign=is_mapped)
    return model.requires_grad_(False)


def trace(model: NVEmbed, out: Path) -> None:
    """Export the module as torch does it, batch and sequence dynamic."""
    import torch

    # Three tensors: given one thrice, the exporter takes its inputs for one (torch 2.13).
    example = tuple(torch.ones(_TRACE_SHAPE, dtype=torch.int64) for _ in range(3))
    names = ("input_ids", "attention_mask", "pool_mask")
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        example,
        out,
        dynamo=True,
        input_names=list(names),
        output_names=["sentence_embedding"],
        dynamic_shapes=(sizes, sizes, sizes),
        verbose=False,
    )
