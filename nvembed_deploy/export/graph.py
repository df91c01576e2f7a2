"""This file owns the NV-Embed graph: what is computed, in order, as ONNX nodes.

The graph is authored from the spec, not traced from torch: it needs no weights and no torch, takes
well under a second, and its names are the same every time. Inputs `input_ids`, `attention_mask`
(what may be attended) and `pool_mask` (what is averaged), int64 [B, S]; output
`sentence_embedding`, float32 [B, D], of length 1.
Shapes: B batch, S sequence, D hidden, H heads, K head width, L latents, F feed width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nvembed_deploy.export.builder import DATA_TYPES, GraphBuilder, WeightEntry
from nvembed_deploy.export.dialect import DIALECTS, DROPPED, Angles
from nvembed_deploy.spec import ModelSpec, PoolerForm, Pooling, Precision

INPUTS = ("input_ids", "attention_mask", "pool_mask")
OUTPUT = "sentence_embedding"
HIDDEN = "hidden"
_EPS = 1e-12
"""Smallest norm divided by, as torch.nn.functional.normalize has it."""


@dataclass(frozen=True)
class GraphOptions:
    """How to write the graph. `compute` differs from `precision` only for checks (see builder)."""

    precision: Precision = Precision.FP32
    opset: int = 23
    pooler_form: PoolerForm = PoolerForm.FOLDED
    compute: Precision | None = None


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
    """Author the whole graph."""
    author = _Author(spec, options)
    input_ids, attention_mask, pool_mask = (author.mask_input(name) for name in INPUTS)
    hidden = author.embed(input_ids)
    mask, angles = author.mask(attention_mask), author.angles(input_ids)
    for layer in range(spec.backbone.num_layers):
        hidden = author.layer(hidden, layer, mask, angles)
    output = author.pool(hidden, pool_mask)
    return author.block((input_ids, attention_mask, pool_mask), output)


def author_blocks(spec: ModelSpec, options: GraphOptions) -> list[Block]:
    """Author the same graph as consecutive blocks: embedding, each layer, pooling.

    Each maps `hidden` to `hidden` in the graph's precision; the first takes `input_ids`, layers
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
        if position == spec.backbone.num_layers:
            pool_mask = author.mask_input("pool_mask")
            blocks.append(author.block((hidden, pool_mask), author.pool(hidden, pool_mask)))
            continue
        mask_BS = author.mask_input("attention_mask")
        output = author.layer(hidden, position, author.mask(mask_BS), author.angles(mask_BS))
        blocks.append(author.block((hidden, mask_BS), author.named(HIDDEN + "_out", output)))
    return blocks


class _Author:
    """Writes the parts of the model into one builder."""

    def __init__(self, spec: ModelSpec, options: GraphOptions) -> None:
        self.spec, self.options = spec, options
        compute = options.compute or options.precision
        self.b = GraphBuilder(compute, options.precision)
        self.dialect = DIALECTS[options.opset](self.b, spec.backbone)

    def mask_input(self, name: str) -> ir.Value:
        return self.b.input(name, ir.DataType.INT64, ["batch", "sequence"])

    def hidden_input(self) -> ir.Value:
        width = self.spec.backbone.hidden_size
        return self.b.input(HIDDEN, DATA_TYPES[self.b.compute], ["batch", "sequence", width])

    def named(self, name: str, value: ir.Value) -> ir.Value:
        return self.b.op("Identity", value, name=name)

    def block(self, inputs: tuple[ir.Value, ...], output: ir.Value) -> Block:
        dtype = ir.DataType.FLOAT if output.name == OUTPUT else DATA_TYPES[self.b.compute]
        axes = ["batch"] if output.name == OUTPUT else ["batch", "sequence"]
        output.type = ir.TensorType(dtype)
        output.shape = ir.Shape([*axes, self.spec.backbone.hidden_size])
        return Block(self.b, inputs, output, self.dialect.opset)

    def linear(
        self, x: ir.Value, name: str, sizes: tuple[int, int], bias: bool = False
    ) -> ir.Value:
        """Return x [.., in] @ W [in, out] (+ b); the weight is stored transposed: `weight_t`."""
        product = self.b.op("MatMul", x, self.b.weight(name + ".weight_t", sizes), name=name)
        if not bias:
            return product
        return self.b.op("Add", product, self.b.weight(name + ".bias", sizes[1:]))

    def embed(self, input_ids_BS: ir.Value) -> ir.Value:
        backbone = self.spec.backbone
        shape = (backbone.vocab_size, backbone.hidden_size)
        table = self.b.weight("backbone.embed_tokens.weight", shape)
        return self.b.op("Gather", table, input_ids_BS, name="embed", axis=0)

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
            cos, sin = (self._narrow(b.op(kind, angles)) for kind in ("Cos", "Sin"))
            return Angles(cos, sin, b.op("Expand", positions, shape, name="positions"))

    def layer(self, hidden_BSD: ir.Value, index: int, mask: ir.Value, angles: Angles) -> ir.Value:
        """Write one decoder layer: attention and gated feed-forward, each with its residual."""
        b, spec = self.b, self.spec.backbone
        prefix = f"backbone.layers.{index}."
        hidden, wide = spec.hidden_size, spec.intermediate_size
        query, key = spec.num_heads * spec.head_width, spec.num_kv_heads * spec.head_width
        with b.scope(f"layers.{index}"):
            normal = self.rms_norm(hidden_BSD, prefix + "input_layernorm.weight")
            qkv = (
                self.linear(normal, prefix + "self_attn.q_proj", (hidden, query)),
                self.linear(normal, prefix + "self_attn.k_proj", (hidden, key)),
                self.linear(normal, prefix + "self_attn.v_proj", (hidden, key)),
            )
            mixed = self.dialect.attention(qkv, mask, angles)
            update = self.linear(mixed, prefix + "self_attn.o_proj", (query, hidden))
            hidden_BSD = b.op("Add", hidden_BSD, update)
            normal = self.rms_norm(hidden_BSD, prefix + "post_attention_layernorm.weight")
            gate = self.linear(normal, prefix + "mlp.gate_proj", (hidden, wide))
            up = self.linear(normal, prefix + "mlp.up_proj", (hidden, wide))
            gated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
            return b.op(
                "Add", hidden_BSD, self.linear(gated, prefix + "mlp.down_proj", (wide, hidden))
            )

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        gain = self.b.weight(name, (self.spec.backbone.hidden_size,))
        return self.dialect.rms_norm(x, gain, self.spec.backbone.rms_norm_eps)

    def pool(self, hidden_BSD: ir.Value, pool_mask_BS: ir.Value) -> ir.Value:
        """Write final norm, pooler, mean and the unit length; the mean and after in float32."""
        b, pooler = self.b, self.spec.pooler
        hidden = self.spec.backbone.hidden_size
        with b.scope("pooler"):
            states = self.rms_norm(hidden_BSD, "backbone.norm.weight")
            mean = _Mean(b, pool_mask_BS)
            if pooler.pooling is Pooling.MEAN:
                return self._normalize(mean(states))
            states, gated = self._latent_states(states)
            # The last linear commutes with the mean: one row per text instead of one per token.
            average = self._narrow(mean(gated))
            projected = self.linear(average, "pooler.feed_down", (pooler.feed_width, hidden), True)
            pooled = b.op("Add", self._widen(projected), mean(states))
            return self._normalize(pooled)

    def _latent_states(self, states_BSD: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the states after cross-attention [B, S, D] and the gated features [B, S, F]."""
        b, pooler = self.b, self.spec.pooler
        hidden = self.spec.backbone.hidden_size
        normal = self._layer_norm(states_BSD, "pooler.query_norm")
        folded = self.options.pooler_form is PoolerForm.FOLDED
        mixed = self._folded_attention(normal) if folded else self._faithful_attention(normal)
        states = b.op("Add", states_BSD, mixed)
        normal = self._layer_norm(states, "pooler.feed_norm")
        both = self.linear(normal, "pooler.feed_up", (hidden, 2 * pooler.feed_width), True)
        halves = b.constant([pooler.feed_width, pooler.feed_width])
        value, gate = b.ops("Split", [both, halves], 2, axis=-1)
        return states, b.op("Mul", value, b.op("Gelu", gate))

    def _folded_attention(self, normal_BSD: ir.Value) -> ir.Value:
        b, pooler = self.b, self.spec.pooler
        hidden, wide = self.spec.backbone.hidden_size, pooler.num_heads * pooler.num_latents
        scores = self.linear(normal_BSD, "pooler.scores", (hidden, wide))
        by_head = b.constant([0, 0, pooler.num_heads, pooler.num_latents])
        weights = b.op("Softmax", b.op("Reshape", scores, by_head), axis=-1)
        flat = b.op("Reshape", weights, b.constant([0, 0, wide]))
        return self.linear(flat, "pooler.values", (wide, hidden))

    def _faithful_attention(self, normal_BSD: ir.Value) -> ir.Value:
        """Attention over the latents as trained; keys and values are made once, not per text."""
        b, pooler = self.b, self.spec.pooler
        hidden, heads, width = self.spec.backbone.hidden_size, pooler.num_heads, pooler.head_width
        inner = heads * width
        latents = b.weight("pooler.latents", (pooler.num_latents, hidden))
        context = self._layer_norm(latents, "pooler.latent_norm")
        both = self.linear(context, "pooler.key_value", (hidden, 2 * inner))
        key, value = b.ops("Split", [both, b.constant([inner, inner])], 2, axis=-1)
        by_head = b.constant([pooler.num_latents, heads, width])
        key_HKL = b.op("Transpose", b.op("Reshape", key, by_head), perm=[1, 2, 0])
        value_HLK = b.op("Transpose", b.op("Reshape", value, by_head), perm=[1, 0, 2])
        query = self.linear(normal_BSD, "pooler.query", (hidden, inner))
        query = b.op("Reshape", query, b.constant([0, 0, heads, width]))
        query = b.op("Mul", b.op("Transpose", query, perm=[0, 2, 1, 3]), b.constant(width**-0.5))
        weights = b.op("Softmax", b.op("MatMul", query, key_HKL), axis=-1)
        mixed = b.op("Transpose", b.op("MatMul", weights, value_HLK), perm=[0, 2, 1, 3])
        flat = b.op("Reshape", mixed, b.constant([0, 0, inner]))
        return self.linear(flat, "pooler.output", (inner, hidden))

    def _layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        shape = (self.spec.backbone.hidden_size,)
        gain, bias = (self.b.weight(f"{name}.{part}", shape) for part in ("weight", "bias"))
        eps = self.spec.pooler.layer_norm_eps
        return self.b.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps, stash_type=1)

    def _normalize(self, pooled_BD: ir.Value) -> ir.Value:
        b = self.b
        norm = b.op("ReduceL2", pooled_BD, b.constant([-1]), keepdims=1)
        floor = b.op("Max", norm, b.constant(_EPS, ir.DataType.FLOAT))
        output = b.op("Div", pooled_BD, floor)
        output.name = OUTPUT
        return output

    def _narrow(self, x: ir.Value) -> ir.Value:
        if self.b.compute is Precision.FP32:
            return x
        return self.b.op("Cast", x, to=DATA_TYPES[self.b.compute])

    def _widen(self, x: ir.Value) -> ir.Value:
        return x if self.b.compute is Precision.FP32 else self.b.op("Cast", x, to=ir.DataType.FLOAT)


class _Mean:
    """The mean over kept tokens as a product: weights [B, 1, S] x states [B, S, F], in float32.

    The weights are 1/count in the graph's precision; dividing by their float32 sum removes the
    rounding of 1/count, and a text with no kept token gives zeros instead of NaN.
    """

    def __init__(self, b: GraphBuilder, pool_mask_BS: ir.Value) -> None:
        self._b = b
        kept = b.op("Cast", pool_mask_BS, to=ir.DataType.FLOAT)
        count = b.op("ReduceSum", kept, b.constant([-1]), keepdims=1)
        share = b.op("Div", kept, b.op("Max", count, b.constant(1.0, ir.DataType.FLOAT)))
        self._rounds = b.compute is not Precision.FP32
        if self._rounds:
            share = b.op("Cast", share, to=DATA_TYPES[b.compute])
        self._share_B1S = b.op("Unsqueeze", share, b.constant([1]))
        wide = b.op("Cast", share, to=ir.DataType.FLOAT) if self._rounds else share
        total = b.op("ReduceSum", wide, b.constant([-1]), keepdims=1)
        self._total_B1 = b.op("Max", total, b.constant(_EPS, ir.DataType.FLOAT))

    def __call__(self, states_BSF: ir.Value) -> ir.Value:
        b = self._b
        mixed = b.op("MatMul", self._share_B1S, states_BSF)
        mean_BF = b.op("Squeeze", mixed, b.constant([1]))
        if self._rounds:
            mean_BF = b.op("Cast", mean_BF, to=ir.DataType.FLOAT)
        return b.op("Div", mean_BF, self._total_B1)
