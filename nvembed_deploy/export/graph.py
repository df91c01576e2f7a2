"""This file owns the NV-Embed graph: what is computed, in order, as ONNX nodes.

The graph is authored from the spec, not traced from torch: it needs no weights and no torch, takes
well under a second, and its names are the same every time. Inputs `input_ids`, `attention_mask`
(what may be attended) and `pool_mask` (what is averaged), int64 [B, S]; output
`sentence_embedding`, float32 [B, D], of length 1.
Shapes: B batch, S sequence, D hidden, H heads, K head width, L latents, F feed width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from nvembed_deploy.errors import CheckpointError
from nvembed_deploy.export.builder import DATA_TYPES, GraphBuilder, WeightEntry
from nvembed_deploy.export.cpu_linear import CpuLinearWriter
from nvembed_deploy.export.dialect import DIALECTS, DROPPED, Angles, CpuDialect, Projected
from nvembed_deploy.export.formats import Formats, Kernels
from nvembed_deploy.export.fp8_attention import Fp8AttentionDialect
from nvembed_deploy.export.layout import Layout, Padded, Unpadded
from nvembed_deploy.export.linear import LinearWriter
from nvembed_deploy.export.pooler import PoolerWriter, unit_length
from nvembed_deploy.export.rotation import UNROTATE, feature_block, hadamard
from nvembed_deploy.spec import ModelSpec, PoolerForm, Pooling, Precision

INPUTS = ("input_ids", "attention_mask", "pool_mask")
OUTPUT = "sentence_embedding"
HIDDEN = "hidden"


@dataclass(frozen=True)
class GraphOptions:
    """How to write the graph.

    `precision` is that of the arithmetic and of what is not quantised; `compute` differs from it
    only for checks (see builder). `rotates`: the weights are those of `rotation.py`.
    """

    precision: Precision = Precision.FP32
    opset: int = 23
    pooler_form: PoolerForm = PoolerForm.FOLDED
    compute: Precision | None = None
    formats: Formats = field(default_factory=Formats)
    rotates: bool = False
    kernels: Kernels = Kernels.STANDARD
    fp8_attention: bool = False


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its tokens' layout, the additive mask, the rotary angles.

    `is_last`: what it computes after attention is for pooled tokens alone.
    """

    layout: Layout
    mask: ir.Value
    angles: Angles
    is_last: bool = False


@dataclass(frozen=True)
class Block:
    """A graph, or one of the consecutive blocks it can be cut into, before weights are bound."""

    builder: GraphBuilder
    inputs: tuple[ir.Value, ...]
    output: ir.Value
    opset: int

    @property
    def weights(self) -> list[WeightEntry]:
        """The weights it refers to, in the order of their use."""
        return list(self.builder.weights.values())


def author_graph(spec: ModelSpec, options: GraphOptions) -> Block:
    """Author the whole graph.

    Raises:
        CheckpointError: the model is one of the paper's ablations.
    """
    _refuse_ablation(spec)
    author = _Author(spec, options)
    input_ids, attention_mask, pool_mask = (author.mask_input(name) for name in INPUTS)
    layout = author.layout(attention_mask, pool_mask)
    hidden = author.embed(layout.ids(input_ids))
    place = Place(layout, author.mask(attention_mask), author.angles(input_ids))
    last = spec.backbone.num_layers - 1
    for layer in range(last + 1):
        hidden = author.layer(hidden, layer, replace(place, is_last=layer == last))
    output = author.pool(hidden, layout)
    return author.block((input_ids, attention_mask, pool_mask), output)


def _refuse_ablation(spec: ModelSpec) -> None:
    pooling = spec.pooler.pooling
    if spec.backbone.causal or pooling not in {Pooling.LATENT, Pooling.MEAN}:
        kind = "causal attention" if spec.backbone.causal else f"pooling {pooling.value!r}"
        raise CheckpointError(
            f"{spec.name} has {kind}, which is there to rerun the paper's ablations; no graph is "
            "written for it",
            'encode with load_encoder(CHECKPOINT, "torch"), or train bidirectional with latent or '
            "mean pooling",
        )


def author_blocks(spec: ModelSpec, options: GraphOptions) -> list[Block]:
    """Author the same graph as consecutive blocks: embedding, each layer, pooling.

    Each maps `hidden` to `hidden`, float32; the first takes `input_ids`, layers
    also `attention_mask`, the last `pool_mask`. They refer to the same weights by the same names,
    so that a model larger than memory can be run block by block.
    """
    blocks = []
    for position in range(-1, spec.backbone.num_layers + 1):
        author = _Author(spec, options)
        if position < 0:
            ids = author.mask_input("input_ids")
            blocks.append(author.block((ids,), author.named(HIDDEN, author.embed(ids))))
            continue
        hidden = author.hidden_input()
        name = "attention_mask" if position < spec.backbone.num_layers else "pool_mask"
        mask_BS = author.mask_input(name)
        layout = author.layout(mask_BS, mask_BS)
        if name == "pool_mask":
            output = author.pool(layout.pooled(hidden), layout)
            blocks.append(author.block((hidden, mask_BS), output))
            continue
        place = Place(layout, author.mask(mask_BS), author.angles(mask_BS))
        output = layout.spread(author.layer(layout.kept(hidden), position, place))
        blocks.append(author.block((hidden, mask_BS), author.named(HIDDEN + "_out", output)))
    return blocks


class _Author:
    """Writes the parts of the model into one builder."""

    def __init__(self, spec: ModelSpec, options: GraphOptions) -> None:
        self.spec, self.options = spec, options
        compute = options.compute or options.precision
        self.b = GraphBuilder(compute, options.precision)
        is_standard = options.kernels is Kernels.STANDARD
        self.linear = (LinearWriter if is_standard else CpuLinearWriter)(self.b, options.formats)
        dialect = DIALECTS[options.opset] if is_standard else CpuDialect
        dialect = Fp8AttentionDialect if options.fp8_attention else dialect
        self.dialect = dialect(self.b, spec.backbone)

    def mask_input(self, name: str) -> ir.Value:
        return self.b.input(name, ir.DataType.INT64, ["batch", "sequence"])

    def hidden_input(self) -> ir.Value:
        width = self.spec.backbone.hidden_size
        return self.b.input(HIDDEN, ir.DataType.FLOAT, ["batch", "sequence", width])

    def named(self, name: str, value: ir.Value) -> ir.Value:
        return self.b.op("Identity", value, name=name)

    def block(self, inputs: tuple[ir.Value, ...], output: ir.Value) -> Block:
        axes = ["batch"] if output.name == OUTPUT else ["batch", "sequence"]
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape([*axes, self.spec.backbone.hidden_size])
        return Block(self.b, inputs, output, self.dialect.opset)

    def embed(self, input_ids_BS: ir.Value) -> ir.Value:
        backbone = self.spec.backbone
        shape = (backbone.vocab_size, backbone.hidden_size)
        name, kernels = "backbone.embed_tokens.weight", self.options.kernels
        if kernels is Kernels.CPU:  # half the bytes of the file's largest tensor
            table = self.b.declare(name, shape, ir.DataType.FLOAT16)
            rows = self.b.op("Gather", table, input_ids_BS, name="embed", axis=0)
            return self.b.op("Cast", rows, to=ir.DataType.FLOAT)
        table = self.b.weight(name, shape)
        return self.b.widen(self.b.op("Gather", table, input_ids_BS, name="embed", axis=0))

    def layout(self, attention_mask_BS: ir.Value, pool_mask_BS: ir.Value) -> Layout:
        kind = Unpadded if self.options.kernels is Kernels.CPU else Padded
        return kind(self.b, attention_mask_BS, pool_mask_BS)

    def mask(self, attention_mask_BS: ir.Value) -> ir.Value:
        """Return the additive mask, [B, 1, 1 or S, S]: 0 for kept keys."""
        b = self.b
        with b.scope("mask"):
            kept = b.op("Cast", attention_mask_BS, to=DATA_TYPES[b.compute])
            dropped = b.op("Mul", b.op("Sub", b.constant(1.0), kept), b.constant(DROPPED))
            mask_B11S = b.op("Unsqueeze", dropped, b.constant([1, 2]))
            return self.dialect.mask(mask_B11S, attention_mask_BS)

    def angles(self, ids_BS: ir.Value) -> Angles:
        """Return rotary angles for positions 0..S-1, computed in float32 for any length.

        Source: arXiv 2104.09864 section 3.4.2: theta_i = base^(-2i / head_width).
        """
        b, backbone = self.b, self.spec.backbone
        exponent = np.arange(0, backbone.head_width, 2, dtype=np.float32) / backbone.head_width
        with b.scope("rotary"):
            shape = b.op("Shape", ids_BS)
            length = b.op("Gather", shape, b.table("one", np.array(1, np.int64)), axis=0)
            zero, one = (b.table(n, np.array(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
            positions = b.op("Range", zero, length, one)
            column = b.op(
                "Unsqueeze", b.op("Cast", positions, to=ir.DataType.FLOAT), b.constant([1])
            )
            frequencies = (1.0 / np.float32(backbone.rope_theta) ** exponent).astype(np.float32)
            angles = b.op("Mul", column, b.table("rotary_frequencies", frequencies[None]))
            cos, sin = (self.b.narrow(b.op(kind, angles)) for kind in ("Cos", "Sin"))
            return Angles(cos, sin, b.op("Expand", positions, shape, name="positions"))

    def layer(self, hidden_BSD: ir.Value, index: int, place: Place) -> ir.Value:
        """Write one decoder layer: attention and gated feed-forward, each with its residual."""
        b, spec, layout = self.b, self.spec.backbone, place.layout
        prefix = f"backbone.layers.{index}."
        hidden, wide = spec.hidden_size, spec.intermediate_size
        query, key = spec.num_heads * spec.head_width, spec.num_kv_heads * spec.head_width
        with b.scope(f"layers.{index}"):
            normal = self.b.narrow(self.rms_norm(hidden_BSD, prefix + "input_layernorm.weight"))
            apart = layout.spread
            projected = Projected(
                self.linear(normal, prefix + "self_attn.q_proj", (hidden, query), move=apart),
                self.linear(normal, prefix + "self_attn.k_proj", (hidden, key), move=apart),
                self.linear(normal, prefix + "self_attn.v_proj", (hidden, key), move=apart),
                prefix + "self_attn.",
            )
            mixed = self.dialect.attention(projected, place.mask, place.angles)
            together = layout.pooled if place.is_last else layout.kept
            hidden_BSD = layout.pooled_of_kept(hidden_BSD) if place.is_last else hidden_BSD
            update = self.linear(mixed, prefix + "self_attn.o_proj", (query, hidden), move=together)
            hidden_BSD = b.op("Add", hidden_BSD, self.b.widen(update))
            normal = self.b.narrow(
                self.rms_norm(hidden_BSD, prefix + "post_attention_layernorm.weight")
            )
            gate = self.linear(normal, prefix + "mlp.gate_proj", (hidden, wide))
            up = self.linear(normal, prefix + "mlp.up_proj", (hidden, wide))
            gated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
            gated = self._rotated_features(gated) if self.options.rotates else gated
            update = self.linear(gated, prefix + "mlp.down_proj", (wide, hidden))
            return b.op("Add", hidden_BSD, self.b.widen(update))

    def _rotated_features(self, gated_BSF: ir.Value) -> ir.Value:
        """Rotate blocks of features; down_proj's weight undoes it."""
        b, size = self.b, feature_block(self.spec, self.options.kernels)
        matrix = b.table(f"hadamard_{size}", hadamard(size).astype(DATA_TYPES[b.compute].numpy()))
        width = self.spec.backbone.intermediate_size  # -1 cannot be told where there are no tokens
        blocks = b.op("Reshape", gated_BSF, b.constant([0, 0, width // size, size]))
        return b.op("Reshape", b.op("MatMul", blocks, matrix), b.constant([0, 0, width]))

    def rms_norm(self, hidden_BSD: ir.Value, name: str) -> ir.Value:
        """Return the normalised states, float32 like the states and the gain."""
        gain = self.b.wide_weight(name, (self.spec.backbone.hidden_size,))
        return self.dialect.rms_norm(hidden_BSD, gain, self.spec.backbone.rms_norm_eps)

    def pool(self, hidden_BSD: ir.Value, layout: Layout) -> ir.Value:
        """Write final norm, pooler, mean and the unit length, of the pooled tokens."""
        writer = PoolerWriter(self.b, self.linear, self.spec, self.options.pooler_form)
        with self.b.scope("pooler"):
            states = self.rms_norm(hidden_BSD, "backbone.norm.weight")
            if self.options.rotates:
                size = self.spec.backbone.hidden_size
                matrix = self.b.weight(UNROTATE + ".weight_t", (size, size))
                states = self.b.widen(self.b.op("MatMul", self.b.narrow(states), matrix))
            output = unit_length(self.b, writer(states, layout.mean()))
        output.name = OUTPUT
        return output
