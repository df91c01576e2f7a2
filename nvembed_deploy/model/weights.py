"""This file owns a checkpoint's tensors under our names: complete, finite, the adapter merged.

Tensors are read one at a time, or by rows, so that nobody holds the model. It needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from nvembed_deploy.checkpoint import DESCRIPTION, Checkpoint, Tensor
from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.model.adapter import Adapter, open_adapter
from nvembed_deploy.model.names import BACKBONE, POOLER, expected_shapes, our_name
from nvembed_deploy.spec import ModelSpec
from nvembed_deploy.tensordtype import find_nonfinite

_SHOWN = 10  # problems named in one message
_EMBEDDINGS = BACKBONE + "embed_tokens.weight"

_QUANTISED = re.compile(r"(?i)scale|absmax|quant|scb$|qweight|qzeros|packed|zero_point")
"""In the names of what quantised weights (AWQ, GPTQ, bitsandbytes, FP8, ...) have beside them."""
_NOT_QUANTISED = "use the model as it was before quantisation, in float32, float16 or bfloat16"

_IGNORED_TAILS = ("rotary_emb.inv_freq", "lm_head.weight")
"""Base decoders carry these; an embedder uses neither (rotary angles are computed)."""


class Weights:
    """Read-only view of a checkpoint's tensors: our names, checked shapes, adapter merged in."""

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], adapter: Adapter | None = None
    ) -> None:
        """Take tensors by our names; use `open_weights` to get them from a checkpoint."""
        self.spec = spec
        self.shapes = expected_shapes(spec)
        self._tensors = tensors
        self._adapter = adapter

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or `rows` of its first axis: stored dtype, float32 where merged.

        Raises:
            CheckpointError: a value is NaN or infinite, or its format has no fractions.
        """
        tensor = self._tensors[name]
        array = tensor.read(rows)
        if array.dtype.kind in "biu":
            raise CheckpointError(
                f"{name} in {tensor.path}: got {array.dtype} values, expected a float format",
                _NOT_QUANTISED,
            )
        index = find_nonfinite(array)
        if index is not None:
            first = (rows.start or 0) if rows is not None else 0
            raise CheckpointError(
                f"{name} in {tensor.path}: got {array[index]} at {(index[0] + first, *index[1:])}, "
                "expected finite numbers",
                "the checkpoint is damaged or its training diverged: use an earlier one",
            )
        if self._adapter is not None and name in self._adapter:
            return self._adapter.merge(name, array, rows)
        return array

    def read_float32(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return `read` as float32."""
        return self.read(name, rows).astype(np.float32, copy=False)

    def embed(self, ids_BS: np.ndarray) -> np.ndarray:
        """Return the tokens' embeddings_BSD, float32; each token's row is read once.

        Raises:
            CheckpointError: a value is NaN or infinite.
        """
        ids, inverse = np.unique(ids_BS, return_inverse=True)
        rows = [self.read_float32(_EMBEDDINGS, slice(i, i + 1)) for i in ids]
        embeddings_BSD: np.ndarray = np.concatenate(rows)[inverse.reshape(ids_BS.shape)]
        return embeddings_BSD

    def row_blocks(self, name: str, block_bytes: int = 32 << 20) -> Iterable[slice]:
        """Cut the first axis into slices of about `block_bytes` in float32."""
        shape = self.shapes[name]
        row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
        step = max(1, min(shape[0], block_bytes // max(row_bytes, 1)))
        return (slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step))


def open_weights(checkpoint: Checkpoint) -> Weights:
    """Map every tensor of a checkpoint to our names and check that the set is complete.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape (all are listed) or there
            under two names, the pooler's file holds tensors of a decoder, or the adapter asks for
            what cannot be merged.
    """
    if checkpoint.backbone is not checkpoint.pooler:
        _refuse_decoder(checkpoint.pooler)
    tensors = {**_named(checkpoint.backbone, BACKBONE), **_named(checkpoint.pooler, POOLER)}
    shapes = expected_shapes(checkpoint.spec)
    _check(tensors, shapes, checkpoint)
    adapter = None
    if checkpoint.adapter is not None:
        targets = {name: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
        adapter = open_adapter(checkpoint.adapter, targets)
    return Weights(checkpoint.spec, tensors, adapter)


def _refuse_decoder(pooler: Mapping[str, Tensor]) -> None:
    """Refuse a pooler's own file that is a shard of a model: its layers are not the base's."""
    strays = [key for key in pooler if (our_name(key) or key).startswith(BACKBONE)]
    if strays:
        has = "1 tensor" if len(strays) == 1 else f"{len(strays)} tensors"
        raise CheckpointError(
            f"{pooler[strays[0]].path} is to be a pooler, but holds {has} of a decoder, as "
            f"{strays[0]}",
            "give a file of the pooler's tensors alone (NV-Embed's begin with "
            "latent_attention_model.); NV-Embed's own folder is a checkpoint as it is",
        )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = our_name(key)
        if key.endswith(_IGNORED_TAILS):
            continue
        if name is None:
            named[key] = tensor  # unknown: `_check` names it
        elif name in named:
            raise CheckpointError(
                f"{name} is in {named[name].path} and, as {key}, in {tensor.path}: which one is "
                "the model's is not known",
                "remove the one that is not",
            )
        elif name.startswith(prefix):  # a released folder holds the other part too
            named[name] = tensor
    return named


def _check(
    tensors: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> None:
    problems = [
        f"missing {name}, expected shape {list(shape)}"
        for name, shape in shapes.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(f"unexpected {name} {list(tensor.shape)} in {tensor.path.name}")
        elif tuple(tensor.shape) != shapes[name]:
            problems.append(
                f"{name} in {tensor.path.name}: got shape {list(tensor.shape)}, "
                f"expected {list(shapes[name])}"
            )
    if problems:
        shown = "\n  ".join(problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        fix = "use the config.json that came with these weights, and copy every file of the model"
        is_assembled = checkpoint.backbone is not checkpoint.pooler
        if is_assembled and all(POOLER in problem for problem in problems):
            fix = f"correct pooler_spec ({DESCRIPTION}), or use a pooler trained on this base"
        if any(name not in shapes and _QUANTISED.search(name) for name in tensors):
            fix = _NOT_QUANTISED
        fits = "1 tensor does" if len(problems) == 1 else f"{len(problems)} tensors do"
        raise CheckpointError(
            f"{checkpoint.path}: {fits} not fit the config:\n  {shown}{more}", fix
        )
