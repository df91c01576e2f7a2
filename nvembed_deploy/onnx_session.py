"""This file owns what every ONNX Runtime session of ours is told, whoever opens it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_EXACT_PRODUCTS = "session.x64quantprecision"
"""Makes weights unsigned at load where the processor is x86 without VNNI and AMX, and changes
nothing elsewhere. Such a processor adds two products of an unsigned and a signed byte in 16 bits,
which saturate. ONNX Runtime 1.32 does it from the extended level of optimisations on, and breaks
graphs with DequantizeLinear by it. Source: onnxruntime.ai, docs/performance/model-optimizations/
quantization, "When and why do I need to try U8U8?"."""


def session_options(*, is_for_cpu: bool) -> onnxruntime.SessionOptions:
    """Return the options of a session over a graph, written for the CPU's kernels or not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if is_for_cpu:
        options.add_session_config_entry(_EXACT_PRODUCTS, "1")
    return options
