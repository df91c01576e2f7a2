"""This file owns writing ONNX nodes, one readable call each, with deterministic names.

It knows ONNX's containers (onnx_ir) and number formats; what the nodes mean is `graph.py`'s
business. Weights are declared here by name and shape only: their bytes are written by
`weight_file.py`, streamed, and never pass through the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from nvembed_deploy.spec import Precision

DATA_TYPES = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}
FILE_DTYPES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT8: "I8",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.INT4: "U8",
}
"""ONNX's dtypes by their names in a safetensors header; 4-bit values lie two in a byte."""
_DOMAINS = {"MatMulIntegerToFloat": "com.microsoft"}
"""Operators that are not ONNX's own: ONNX Runtime's."""


@dataclass(frozen=True)
class WeightEntry:
    """A weight the graph refers to: its name in the file, dtype and shape."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bitwidth // 8

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Its shape in the file: a row of 4-bit values has half as many bytes."""
        if self.dtype is not ir.DataType.INT4:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // 2)


class GraphBuilder:
    """Collects nodes, small constants and weight declarations of one graph.

    `compute` is the precision of the arithmetic, `stored` that of the weights; where they differ
    (checking a bfloat16 file on a machine without bfloat16 kernels) a Cast follows the weight.
    """

    def __init__(self, compute: Precision, stored: Precision) -> None:
        """Start an empty graph."""
        self.compute = compute
        self.stored = stored
        self.weights: dict[str, WeightEntry] = {}
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._scope: list[str] = []

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[str | int]) -> ir.Value:
        """Declare a graph input."""
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def scope(self, name: str) -> _Scope:
        """Prefix the names of the nodes made inside a `with` block."""
        return _Scope(self._scope, name)

    def op(
        self,
        kind: str,
        *inputs: ir.Value,
        name: str = "",
        **attributes: float | str | Sequence[int],
    ) -> ir.Value:
        """Append a node with one output and return that output; both are named by scope."""
        return self.ops(kind, inputs, 1, name, **attributes)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        num_outputs: int,
        name: str = "",
        **attributes: float | str | Sequence[int],
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        full = ".".join([*self._scope, name or f"{kind.lower()}_{len(self.nodes)}"])
        tails = [""] if num_outputs == 1 else [f".{i}" for i in range(num_outputs)]
        outputs = [ir.Value(name=full + tail) for tail in tails]
        node = ir.node(
            kind,
            inputs=list(inputs),
            attributes=attributes,
            outputs=outputs,
            domain=_DOMAINS.get(kind, ""),
            name=full,
        )
        self.nodes.append(node)
        return outputs

    def constant(self, value: Sequence[int] | float, dtype: ir.DataType | None = None) -> ir.Value:
        """Return a small constant: int64 for a list of ints, else a scalar of `dtype`.

        `dtype` defaults to the precision of the arithmetic. Equal constants are shared.
        """
        if isinstance(value, Sequence):
            array, name = np.array(value, np.int64), "shape_" + "_".join(map(str, value))
        else:
            dtype = dtype or DATA_TYPES[self.compute]
            array = np.array(value, dtype.numpy())
            name = f"constant_{dtype.name.lower()}_{value!r}"
        return self.table(name.replace("-", "m"), array)

    def table(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a constant array kept inside the graph file (once per name)."""
        if name not in self.initializers:
            self.initializers[name] = _initializer(ir.tensor(array, name=name))
        return self.initializers[name]

    def weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Declare a weight by its name in the weight file and return it, ready for arithmetic."""
        value = self.declare(name, shape, DATA_TYPES[self.stored])
        if self.stored is self.compute:
            return value
        return self.op("Cast", value, to=DATA_TYPES[self.compute])

    def wide_weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Declare a weight that is stored and used in float32 whatever the precision."""
        return self.declare(name, shape, ir.DataType.FLOAT)

    def declare(self, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        """Declare a tensor of the weight file and return it as it is stored."""
        if name not in self.weights:
            self.weights[name] = WeightEntry(name, dtype, shape)
            self.initializers[name] = ir.Value(name=name)
        return self.initializers[name]

    def narrow(self, x: ir.Value) -> ir.Value:
        """Cast float32 to the precision of the arithmetic."""
        return (
            x if self.compute is Precision.FP32 else self.op("Cast", x, to=DATA_TYPES[self.compute])
        )

    def widen(self, x: ir.Value) -> ir.Value:
        """Cast from the precision of the arithmetic to float32."""
        return x if self.compute is Precision.FP32 else self.op("Cast", x, to=ir.DataType.FLOAT)

    def model(
        self, inputs: Sequence[ir.Value], output: ir.Value, opset: int, data: WeightData
    ) -> ir.Model:
        """Close the graph: bind each declared weight to its bytes in the weight file."""
        for name, entry in self.weights.items():
            value = self.initializers[name]
            value.const_value = data.tensor(entry)
            value.type = ir.TensorType(entry.dtype)
            value.shape = ir.Shape(entry.shape)
        graph = ir.Graph(
            inputs,
            [output],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": opset} | {node.domain: 1 for node in self.nodes if node.domain},
            name="nvembed",
        )
        return ir.Model(graph, ir_version=10, producer_name="nvembed-deploy")


@dataclass(frozen=True)
class WeightData:
    """Where the weight file lies, and at which byte each tensor starts."""

    path: Path
    offsets: dict[str, int]

    def tensor(self, entry: WeightEntry) -> ir.ExternalTensor:
        """Return the reference an ONNX initializer keeps."""
        return ir.ExternalTensor(
            location=self.path.name,
            offset=self.offsets[entry.name],
            length=entry.num_bytes,
            dtype=entry.dtype,
            shape=ir.Shape(entry.shape),
            name=entry.name,
            base_dir=self.path.parent,
        )


class _Scope:
    def __init__(self, stack: list[str], name: str) -> None:
        self._stack, self._name = stack, name

    def __enter__(self) -> None:
        self._stack.append(self._name)

    def __exit__(self, *_: object) -> None:
        self._stack.pop()


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
