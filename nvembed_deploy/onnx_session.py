"""This file owns what every ONNX Runtime session of ours is told, whoever opens it."""

from __future__ import annotations

import base64
import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

_EXACT_PRODUCTS = "session.x64quantprecision"
"""Makes weights unsigned at load on x86. ONNX Runtime 1.32 does so from the extended level of
optimisations on, and breaks graphs with DequantizeLinear by it; on a processor with VNNI it takes
twice the time for nothing. Source: onnxruntime.ai, docs/performance/model-optimizations/
quantization, "When and why do I need to try U8U8?"."""
_INT4_INPUTS, _FLOAT32 = "session.qdq_matmulnbits_accuracy_level", "1"
"""What 4-bit weights are multiplied with. ONNX Runtime's own choice, "4", rounds inputs to 8 bits,
which the graph does not say: a text's row then depends on its batch mates (docs/numerics.md).
Source: onnxruntime_session_options_config_keys.h."""
_PROBE = base64.b64decode(
    "CAk6YgoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFwWhUKAWESEAoOCAISCgoDEgFtCgMSAWtaFQoBYhIQCg4IAxIK"
    "CgMSAWsKAxIBbmIVCgF5EhAKDggGEgoKAxIBbQoDEgFuQgQKABAU"
)
"""An ONNX model, y = MatMulInteger(a, b), a unsigned, b signed; a serving host has no `onnx`."""
_PROBE_SIZE = 16


def session_options(*, is_for_cpu: bool) -> onnxruntime.SessionOptions:
    """Return the options of a session over a graph, written for the CPU's kernels or not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(_INT4_INPUTS, _FLOAT32)
    if is_for_cpu and saturates():
        options.add_session_config_entry(_EXACT_PRODUCTS, "1")
    return options


@functools.cache
def saturates() -> bool:
    """Tell whether ONNX Runtime's 8-bit products are wrong for the largest bytes here.

    x86 without VNNI and AMX adds two products of an unsigned and a signed byte in 16 bits and clips
    them. No name of a processor tells which kernel ONNX Runtime takes, so a product does: 5 ms,
    once a process.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_PROBE, options, providers=["CPUExecutionProvider"])
    shape = (_PROBE_SIZE, _PROBE_SIZE)
    feed = {"a": np.full(shape, 255, np.uint8), "b": np.full(shape, 127, np.int8)}
    (product,) = session.run(None, feed)
    return bool((product != 255 * 127 * _PROBE_SIZE).any())
