"""This file owns GGUF models: their sizes, and their tensors as float32 under Hugging Face's names.

Llama and Mistral decoders are read, both of which llama.cpp writes as architecture "llama". What
such a file asks for beyond that is refused by name: a silently ignored key is a wrong embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.gguf_header import (
    CONVERT_AGAIN,
    GGUFHeader,
    StoredTensor,
    import_gguf,
    read_header,
)
from nvembed_deploy.spec import BackboneSpec, backbone_fault
from nvembed_deploy.tensorfile import TensorEntry

_ARCHITECTURE = "llama"
_TOP = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_LANGUAGE_HEAD = "output.weight"
"""The one tensor left out: an embedder predicts no tokens."""

_IGNORED = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "expert_count": 0,
    "attention.scale": 0.0,
}
"""Keys that would change the model, with the value at which they do not."""

_ANOTHER_MODEL = "use a Llama- or Mistral-family decoder without them, or its Hugging Face folder"


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor, dequantised as it is read.

    `stored` holds its rows as bytes. `num_rotary_heads` is set where llama.cpp has interleaved the
    two halves of each head (q_proj, k_proj): reading undoes that.
    """

    name: str
    shape: tuple[int, ...]
    stored: TensorEntry
    quantization: int
    num_rotary_heads: int = 0

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.stored.path

    def read(self, rows: slice | None = None) -> np.ndarray:
        """Return the tensor, or only `rows` (contiguous) of its first axis, as float32.

        Only the rows asked for are read (whole heads of q_proj and k_proj).

        Raises:
            CheckpointError: the file has gone or become shorter since it was opened.
            ValueError: `rows` has a step.
        """
        start, stop, step = (rows or slice(None)).indices(self.shape[0])
        if step != 1:
            raise ValueError(f"{self.name}: rows must be contiguous, got {rows}")
        stop = max(start, stop)
        if len(self.shape) == 1:
            return self._dequantize(0, 1)[0, start:stop]
        if not self.num_rotary_heads:
            return self._dequantize(start, stop)
        width = self.shape[0] // self.num_rotary_heads
        first, last = start // width * width, -(-stop // width) * width
        return _uninterleave(self._dequantize(first, last), width)[start - first : stop - first]

    def _dequantize(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return np.empty((0, self.shape[-1]), np.float32)
        quants, kind = import_gguf().quants, import_gguf().GGMLQuantizationType
        data = self.stored.read(slice(start, stop))
        values: np.ndarray = quants.dequantize(data, kind(self.quantization))
        return values


def _uninterleave(stored: np.ndarray, width: int) -> np.ndarray:
    """Restore the row order of q_proj or k_proj [rows, D], whole heads of `width` rows.

    llama.cpp turns pairs of neighbouring rows, Hugging Face pairs half a head apart: row 2i + t of
    a stored head is row t * width/2 + i.

    Source: LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py, which this inverts.
    """
    heads = stored.reshape(-1, width // 2, 2, stored.shape[1])
    return heads.swapaxes(1, 2).reshape(stored.shape)


@dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF model."""

    backbone: BackboneSpec
    entries: Mapping[str, GGUFTensor]
    bos_id: int
    eos_id: int


def open_gguf(path: Path) -> GGUFFile:
    """Open a Llama- or Mistral-family GGUF file; no tensor is read.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or holds what this package
            cannot compute.
        MissingPackageError: the gguf package is not installed.
    """
    header = read_header(path)
    backbone = _backbone(header)
    return GGUFFile(
        backbone=backbone,
        entries=_entries(header, backbone),
        bos_id=header.get("tokenizer.ggml.bos_token_id", int),
        eos_id=header.get("tokenizer.ggml.eos_token_id", int),
    )


def _backbone(header: GGUFHeader) -> BackboneSpec:
    _refuse_unsupported(header)
    spec = _sizes(header)
    fault = backbone_fault(spec)
    if fault:
        raise CheckpointError(f"{header.path}: {fault}", CONVERT_AGAIN)
    return spec


def _sizes(header: GGUFHeader) -> BackboneSpec:
    sizes = {
        "hidden_size": "embedding_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "intermediate_size": "feed_forward_length",
        "max_positions": "context_length",
    }
    values = {name: header.get(f"{_ARCHITECTURE}.{key}", int) for name, key in sizes.items()}
    num_tokens = len(header.get("tokenizer.ggml.tokens", list, []))
    return BackboneSpec(
        hidden_size=values["hidden_size"],
        num_layers=values["num_layers"],
        num_heads=values["num_heads"],
        intermediate_size=values["intermediate_size"],
        max_positions=values["max_positions"],
        vocab_size=header.get(f"{_ARCHITECTURE}.vocab_size", int, num_tokens),
        num_kv_heads=header.get(
            f"{_ARCHITECTURE}.attention.head_count_kv", int, values["num_heads"]
        ),
        head_width=_head_width(header, values["hidden_size"] // max(values["num_heads"], 1)),
        rms_norm_eps=_decimal(header, "attention.layer_norm_rms_epsilon"),
        rope_theta=_decimal(header, "rope.freq_base", 10000.0),
    )


def _decimal(header: GGUFHeader, key: str, default: float | None = None) -> float:
    """Return the shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(header.get(f"{_ARCHITECTURE}.{key}", float, default))))


def _head_width(header: GGUFHeader, default: int) -> int:
    keys = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    widths = {key: header.get(f"{_ARCHITECTURE}.{key}", int, default) for key in keys}
    stated = {
        key: width for key, width in widths.items() if f"{_ARCHITECTURE}.{key}" in header.metadata
    }
    if len(set(stated.values())) > 1:
        raise CheckpointError(
            f"{header.path}: got head widths {stated}, expected one", _ANOTHER_MODEL
        )
    return next(iter(stated.values()), default)


def _refuse_unsupported(header: GGUFHeader) -> None:
    architecture = header.get("general.architecture", str)
    if architecture != _ARCHITECTURE:
        raise CheckpointError(
            f"{header.path}: got architecture {architecture!r}, expected {_ARCHITECTURE!r}",
            "use a Llama- or Mistral-family decoder; llama.cpp writes both as 'llama'",
        )
    for key, value in header.metadata.items():
        tail = key.removeprefix(f"{_ARCHITECTURE}.")
        if (tail.startswith("rope.scaling.") or tail in _IGNORED) and value != _IGNORED.get(tail):
            raise CheckpointError(
                f"{header.path}: {key} is {value!r}, which is not supported", _ANOTHER_MODEL
            )


def _entries(header: GGUFHeader, backbone: BackboneSpec) -> dict[str, GGUFTensor]:
    stored = {t.name: t for t in header.tensors if t.name != _LANGUAGE_HEAD}
    unknown = [name for name in stored if _hugging_face_name(name) is None]
    if unknown:
        raise CheckpointError(
            f"{header.path}: tensors {', '.join(unknown[:5])} ({len(unknown)} in all) have no "
            "place in a plain decoder: biases, experts and rotary scaling are not supported",
            _ANOTHER_MODEL,
        )
    entries = (_tensor(header.path, tensor, backbone) for tensor in stored.values())
    return {entry.name: entry for entry in entries}


def _hugging_face_name(name: str) -> str | None:
    match = _LAYER_TENSOR.fullmatch(name)
    if match and match[2] in _LAYER:
        return f"layers.{match[1]}.{_LAYER[match[2]]}.weight"
    return _TOP.get(name)


def _tensor(path: Path, stored: StoredTensor, backbone: BackboneSpec) -> GGUFTensor:
    tail = stored.name.split(".")[-2]
    num_heads = {"attn_q": backbone.num_heads, "attn_k": backbone.num_kv_heads}.get(tail, 0)
    problem = "" if all(stored.shape) else f"has the shape {list(stored.shape)}, expected no 0"
    if num_heads and stored.shape[0] != num_heads * backbone.head_width:
        heads = f"{num_heads} heads of {backbone.head_width}"
        problem = f"has {stored.shape[0]} rows, expected {heads}"
    if problem:
        raise CheckpointError(f"{path}: {stored.name} {problem}", "copy or download the file again")
    _check_quantization(path, stored)
    num_rows = stored.shape[0] if len(stored.shape) > 1 else 1
    name = _hugging_face_name(stored.name) or stored.name
    rows = (num_rows, stored.nbytes // max(num_rows, 1))
    entry = TensorEntry(name, path, "U8", rows, stored.offset, stored.nbytes)
    return GGUFTensor(name, stored.shape, entry, stored.quantization, num_heads)


def _check_quantization(path: Path, stored: StoredTensor) -> None:
    """Dequantise one block of zeros: the package tells only so which formats it can read."""
    gguf = import_gguf()
    kind = gguf.GGMLQuantizationType(stored.quantization)
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, kind)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path}: {stored.name} is stored as {kind.name}, which the gguf package cannot "
            "dequantise",
            "use a file quantised to Q8_0, Q6_K, Q5_K, Q4_K, or F16",
        ) from error
